"""A comparison of runs as text: the cells of its table, and the sentences under it."""

from collections.abc import Sequence
from typing import NamedTuple

from fedjax8.results.comparison import Comparison, Result, not_reached
from fedjax8.results.curves import Statistic
from fedjax8.results.fairness import in_words
from fedjax8.results.measure import Measure
from fedjax8.results.runs import Setting, short_name

GAIN = 9
"""The first columns, on the way to the target; the others are about whole runs."""
ALWAYS = (2, 8, 9)
"""Columns that are shown also where all settings are alike in them: target, gain in bytes, best value."""
NOT_REACHED = "not reached"
FIELD = -1
FIELDS, LONGEST = 4, 24
"""Most config fields that are columns, and the most characters of their values."""
NONE = "-"
"""A cell without a value."""


class Table(NamedTuple):
    """Cells for people, without the columns that say nothing about differences."""

    columns: tuple[str, ...]
    """The first is the setting."""
    rows: tuple[tuple[str, ...], ...]
    """One a setting."""
    shared: tuple[tuple[str, str], ...]
    """Columns left out, since all settings have the same value in them, and that value."""
    kept: tuple[int, ...]
    """Places of the columns among `columns(found)`; `FIELD` for those of config fields."""


def columns(found: Comparison) -> tuple[str, ...]:
    """Headings of the table, the metric by its name."""
    words = found.measure.words
    timed = any(result.compiling for result in found.results)
    return (
        "setting",
        "seeds",
        f"target {words}",
        "rounds to target",
        "reference rounds",
        "gain in rounds",
        "bytes to target",
        "reference bytes",
        "gain in bytes",
        f"best {words}",
        f"final {words}",
        "rounds",
        "bytes up",
        "bytes down",
        "saving",
        "seconds",
        *(("seconds of training", "seconds of compiling") if timed else ()),
    )


def rows(found: Comparison) -> list[list[str]]:
    """The table's cells: one row per setting, one column for each of `columns`."""
    cells = [_row(result, found.measure) for result in found.results]
    if any(result.compiling for result in found.results):
        for row, result in zip(cells, found.results, strict=True):
            row += [_plain(result.training, 1), _plain(result.compiling, 1)]
    return cells


def table(found: Comparison) -> Table:
    """The table without columns in which all settings are alike, or none has a value; of one setting, the whole.

    Where the labels do not tell the config fields in which settings differ, these are columns too, if they are few.
    """
    names, cells = columns(found), rows(found)
    alike = [len(cells) > 1 and len({row[c] for row in cells}) == 1 for c in range(len(names))]
    kept = tuple(c for c in range(len(names)) if c in (0, *ALWAYS) or not alike[c])
    shared = tuple((names[c], cells[0][c]) for c in range(len(names)) if c not in kept and cells[0][c] != NONE)
    fields = _untold_fields([result.setting for result in found.results])
    heading = (names[0], *fields, *(names[c] for c in kept[1:]))
    body = tuple(
        (row[0], *(result.setting.fields[field] for field in fields.values()), *(row[c] for c in kept[1:]))
        for row, result in zip(cells, found.results, strict=True)
    )
    return Table(heading, body, shared, (0, *[FIELD] * len(fields), *kept[1:]))


def _untold_fields(settings: Sequence[Setting]) -> dict[str, str]:
    """Short name to config field, of the few fields in which the settings differ and which their labels do not tell."""
    fields = list(settings[0].fields)
    short = {short_name(field, fields): field for field in fields}
    told = all(
        f"{name}={setting.fields[field]}" in setting.label for name, field in short.items() for setting in settings
    )
    long = any(len(setting.fields[field]) > LONGEST for field in fields for setting in settings)
    return {} if told or long or len(fields) > FIELDS else short


def shared_in_words(shared: Sequence[tuple[str, str]]) -> str:
    """As `The same for all: seeds 3, rounds 60.`; empty if nothing is."""
    return f"The same for all: {', '.join(f'{name} {value}' for name, value in shared)}." if shared else ""


def _row(result: Result, measure: Measure) -> list[str]:
    gain = result.gain
    part = f" ({gain.reached} of {gain.compared})" if 0 < gain.reached < gain.compared else ""
    missing = NOT_REACHED if gain.compared and not gain.reached and gain.target else NONE
    return [
        result.setting.label,
        str(len(result.setting.runs)),
        _metric(gain.target, measure),
        _plain(gain.rounds, 0) + part if gain.reached else missing,
        _plain(gain.reference_rounds, 0),
        _times(gain.in_rounds) if gain.within else NOT_REACHED,
        _bytes(gain.num_bytes) if gain.reached else missing,
        _bytes(gain.reference_bytes),
        _times(gain.in_bytes) if gain.within else NOT_REACHED,
        _metric(result.best, measure),
        _metric(result.final, measure),
        _plain(result.rounds, 0),
        _bytes(result.uplink_bytes),
        _bytes(result.downlink_bytes),
        _times(result.saving),
        _plain(result.seconds, 1),
    ]


def _metric(value: Statistic | None, measure: Measure) -> str:
    return NONE if value is None else measure.readable(value.mean, value.spread)


def _spread(spread: float, digits: int) -> str:
    """` ± spread`; empty for one seed, or where all are alike to the digits shown."""
    text = f"{spread:.{digits}f}"
    return f" ± {text}" if float(text) > 0 else ""


def _times(value: Statistic | None) -> str:
    return NONE if value is None else f"{value.mean:.2f}{_spread(value.spread, 2)}x"


def _plain(value: Statistic | None, digits: int) -> str:
    if value is None:
        return NONE
    spread = _spread(value.spread, max(digits, 1))
    return f"{value.mean:.{max(digits, 1) if spread else digits}f}{spread}"


def _bytes(value: Statistic | None) -> str:
    """Three significant digits in the largest decimal unit that leaves at least 1."""
    if value is None:
        return NONE
    power = 0
    while power < 5 and value.mean >= 999.5 * 1000**power:
        power += 1
    unit = ("B", "kB", "MB", "GB", "TB", "PB")[power]
    mean = value.mean / 1000**power
    digits = 0 if power == 0 or mean >= 99.95 else 1 if mean >= 9.995 else 2
    return f"{mean:.{digits}f}{_spread(value.spread / 1000**power, digits)} {unit}"


def explanation(found: Comparison) -> list[str]:
    """Sentences under the table: the target, and the meaning of the columns."""
    reference, measure = found.results[0].setting.label, found.measure
    words, chosen, reported = measure.words, measure.chosen_in_words, measure.reported_in_words
    sentences = [
        f"Target {words}: the {'higher' if measure.lower else 'lower'} of the best {chosen} of a run and that of the "
        "reference's run with the same seed, so that both reach it (choose one value for all with --target)."
        if found.target is None
        else f"Target {words}: {measure.readable(found.target)}, as given."
    ]
    sentences.append(
        f"Reference: {reference}. Rounds and bytes to target: the first evaluated round whose {chosen} "
        "reaches the target, and the bytes of all clients up and down by then. Gain: rounds or bytes of the reference "
        "over those of the setting, mean over the seeds in common. Saving: bytes of the same messages in float32 over "
        "the bytes sent."
    )
    if measure.lower:
        sentences.append(f"Lower values of {words} are better.")
    if measure.chooses != measure.reports:
        sentences.append(
            f"Chosen by {chosen}: the target, its rounds, the margin. Best {words}: the {reported} where the {chosen} "
            f"is best. Final {words}: the {reported}."
        )
    unpaired = [r.setting.label for r in found.results if r.gain.target and not r.gain.paired]
    if unpaired:
        worst = "highest" if measure.lower else "lowest"
        target = f"the target is the {worst} best {words} of all runs of both, and " if found.target is None else ""
        sentences.append(
            f"No seed in common with the reference: {'; '.join(unpaired)}. There {target}the gain is a ratio of means "
            "over seeds, without ±."
        )
    if beyond := not_reached(found):
        sentences.append(
            f"Gain not reached: {'; '.join(beyond)}. A gain counts only where the best {words}, mean over the seeds "
            f"compared, comes within {measure.margin_in_words(found.margin)} of the reference's (another distance: "
            "--margin)."
        )
    for result in found.results:
        if spread := in_words([run.clients for run in result.setting.runs]):
            sentences.append(f"Clients' own models, {result.setting.label}: {spread}.")
    if any(result.compiling for result in found.results):
        sentences.append("Seconds of training: those spent in rounds, without those of compiling.")
    notes = []
    if found.smooth > 1:
        notes.append(f"Values of {words} are means of {found.smooth} evaluations.")
    if any(len(r.setting.runs) > 1 for r in found.results):
        notes.append("±: sample standard deviation over seeds.")
    return [*sentences, " ".join(notes)] if notes else sentences
