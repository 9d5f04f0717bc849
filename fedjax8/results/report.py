"""A comparison of runs as text: the cells of its table, and the sentences under it."""

from fedjax8.results.comparison import Comparison, Result, not_reached
from fedjax8.results.curves import Statistic
from fedjax8.results.fairness import in_words
from fedjax8.results.gain import in_points

COLUMNS = (
    "setting",
    "seeds",
    "target accuracy",
    "rounds to target",
    "reference rounds",
    "gain in rounds",
    "bytes to target",
    "reference bytes",
    "gain in bytes",
    "best accuracy",
    "final accuracy",
    "rounds",
    "bytes up",
    "bytes down",
    "saving",
    "seconds",
)
GAIN = 9
"""The first columns, on the way to the target accuracy; the others are about whole runs."""

NOT_REACHED = "not reached"


def rows(found: Comparison) -> list[list[str]]:
    """The table's cells: one row per setting, one column for each of `COLUMNS`."""
    return [_row(result) for result in found.results]


def _row(result: Result) -> list[str]:
    gain = result.gain
    part = f" ({gain.reached} of {gain.compared})" if 0 < gain.reached < gain.compared else ""
    missing = NOT_REACHED if gain.compared and not gain.reached and gain.accuracy else "-"
    return [
        result.setting.label,
        str(len(result.setting.runs)),
        _plain(gain.accuracy, 4),
        _plain(gain.rounds, 0) + part if gain.reached else missing,
        _plain(gain.reference_rounds, 0),
        _times(gain.in_rounds) if gain.within else NOT_REACHED,
        _bytes(gain.num_bytes) if gain.reached else missing,
        _bytes(gain.reference_bytes),
        _times(gain.in_bytes) if gain.within else NOT_REACHED,
        _plain(result.best_accuracy, 4),
        _plain(result.final_accuracy, 4),
        _plain(result.rounds, 0),
        _bytes(result.uplink_bytes),
        _bytes(result.downlink_bytes),
        _times(result.saving),
        _plain(result.seconds, 1),
    ]


def _spread(spread: float, digits: int) -> str:
    """` ± spread`; empty for one seed, or where all are alike to the digits shown."""
    text = f"{spread:.{digits}f}"
    return f" ± {text}" if float(text) > 0 else ""


def _times(value: Statistic | None) -> str:
    return "-" if value is None else f"{value.mean:.2f}{_spread(value.spread, 2)}x"


def _plain(value: Statistic | None, digits: int) -> str:
    if value is None:
        return "-"
    spread = _spread(value.spread, max(digits, 1))
    return f"{value.mean:.{max(digits, 1) if spread else digits}f}{spread}"


def _bytes(value: Statistic | None) -> str:
    """Three significant digits in the largest decimal unit that leaves at least 1."""
    if value is None:
        return "-"
    power = 0
    while power < 5 and value.mean >= 999.5 * 1000**power:
        power += 1
    unit = ("B", "kB", "MB", "GB", "TB", "PB")[power]
    mean = value.mean / 1000**power
    digits = 0 if power == 0 or mean >= 99.95 else 1 if mean >= 9.995 else 2
    return f"{mean:.{digits}f}{_spread(value.spread / 1000**power, digits)} {unit}"


def explanation(found: Comparison) -> list[str]:
    """Sentences under the table: the target accuracy, and the meaning of the columns."""
    reference = found.results[0].setting.label
    sentences = [
        f"Target accuracy: the lower of the two best {found.on} accuracies of a run and the reference's run with the "
        "same seed, so that both reach it (choose one accuracy for all with --target)."
        if found.target is None
        else f"Target accuracy: {found.target:.4g}, as given."
    ]
    sentences.append(
        f"Reference: {reference}. Rounds and bytes to target: the first evaluated round whose {found.on} accuracy "
        "reaches the target, and the bytes of all clients up and down by then. Gain: rounds or bytes of the reference "
        "over those of the setting, mean over the seeds in common. Saving: bytes of the same messages in float32 over "
        "the bytes sent."
    )
    if found.on != "test":
        sentences.append(
            f"Chosen by {found.on} rows: the target accuracy, its rounds, the margin. Best accuracy: that on test rows "
            f"where the {found.on} accuracy is best. Final accuracy: on test rows."
        )
    unpaired = [r.setting.label for r in found.results if r.gain.accuracy and not r.gain.paired]
    if unpaired:
        lowest = (
            "the target accuracy is the lowest best accuracy of all runs of both, and " if found.target is None else ""
        )
        sentences.append(
            f"No seed in common with the reference: {'; '.join(unpaired)}. There {lowest}the gain is a ratio of means "
            "over seeds, without ±."
        )
    if beyond := not_reached(found):
        sentences.append(
            f"Gain not reached: {'; '.join(beyond)}. A gain counts only where the best accuracy, mean over the seeds "
            f"compared, comes within {in_points(found.margin)} of the reference's (another distance: --margin)."
        )
    for result in found.results:
        if spread := in_words([run.clients for run in result.setting.runs]):
            sentences.append(f"Clients' own models, {result.setting.label}: accuracy {spread}.")
    notes = []
    if found.smooth > 1:
        notes.append(f"Accuracies are means of {found.smooth} evaluations.")
    if any(len(r.setting.runs) > 1 for r in found.results):
        notes.append("±: sample standard deviation over seeds.")
    return [*sentences, " ".join(notes)] if notes else sentences
