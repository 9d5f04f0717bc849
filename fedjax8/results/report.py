"""A comparison of runs as text: the cells of its table, and the sentences under it."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fedjax8.results.comparison import Comparison, Result, not_reached
from fedjax8.results.curves import Statistic
from fedjax8.results.durations import readable_duration
from fedjax8.results.fairness import in_words
from fedjax8.results.gain import Gain
from fedjax8.results.log import OTHERS
from fedjax8.results.measure import Measure
from fedjax8.results.runs import Setting, short_name

NOT_REACHED = "not reached"
FIELD = -1
FIELDS, LONGEST = 4, 24
"""Most config fields that are columns, and the most characters of their values."""
NONE = "-"
"""A cell without a value."""


Cell = Callable[[Result], str]


class Column(NamedTuple):
    """A column of the table."""

    heading: str
    cell: Cell
    always: bool = False
    """Whether it is shown also where all settings are alike in it."""


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
    return tuple(column.heading for column in _columns(found))


def rows(found: Comparison) -> list[list[str]]:
    """The table's cells: one row per setting, one column for each of `columns`."""
    return [[column.cell(result) for column in _columns(found)] for result in found.results]


def about_whole_runs(found: Comparison) -> int:
    """The place among `columns` from which they are about whole runs; those before are on the way to the target."""
    return columns(found).index(f"best {found.measure.words}")


def table(found: Comparison) -> Table:
    """The table without columns in which all settings are alike, or none has a value; of one setting, the whole.

    Where the labels do not tell the config fields in which settings differ, these are columns too, if they are few.
    """
    names, cells = columns(found), rows(found)
    alike = [len(cells) > 1 and len({row[c] for row in cells}) == 1 for c in range(len(names))]
    always = [column.always for column in _columns(found)]
    kept = tuple(c for c in range(len(names)) if always[c] or not alike[c])
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


def _about_time(found: Comparison) -> list[str]:
    """Sentences about simulated time, where some run has a clock."""
    if not found.clocks:
        return []
    about = (
        "Simulated time is by the runs' system models. Waiting: the share of it that clients wait for others; peak "
        "rate: the most bytes a second at once on the server's link; wasted bytes: those from and to clients "
        "without a part in the result."
    )
    if found.timed:
        return [f"{about} Time to target, and its gain: as those of bytes."]
    without = "; ".join(result.setting.label for result in found.results if not result.timed)
    return [about, f"No clock, so that time to target and its gain are not given: {without}."]


def _columns(found: Comparison) -> list[Column]:
    """The columns: of simulated time to the target where all runs have a clock, and beside it where some have."""
    measure, words = found.measure, found.measure.words

    def to_target(cost: str, write: Callable[[Statistic | None], str], counted: bool = False) -> Cell:
        return lambda result: _to_target(result.gain, write(getattr(result.gain, cost)), counted)

    def others(way: str) -> Column:
        return Column(f"bytes {way.removesuffix('_bytes')}", lambda result: _bytes(result.other_bytes.get(way)))

    def gain_in(cost: str) -> Cell:
        return lambda result: _times(getattr(result.gain, f"in_{cost}")) if result.gain.within else NOT_REACHED

    whole_numbers = functools.partial(_plain, digits=0)
    seconds = functools.partial(_plain, digits=1)
    time = [
        Column("time to target", to_target("seconds", _duration)),
        Column("reference time", lambda result: _duration(result.gain.reference_seconds)),
        Column("gain in time", gain_in("seconds"), always=True),
    ]
    simulated = [
        Column("simulated time", lambda result: _duration(result.simulated)),
        Column("waiting", lambda result: _percent(result.waiting)),
        Column("peak rate", lambda result: _bytes(result.peak_rate, "/s")),
        Column("wasted bytes", lambda result: _bytes(result.wasted_bytes)),
    ]
    compiling = [
        Column("seconds of training", lambda result: seconds(result.training)),
        Column("seconds of compiling", lambda result: seconds(result.compiling)),
    ]
    return [
        Column("setting", lambda result: result.setting.label, always=True),
        Column("seeds", lambda result: str(len(result.setting.runs))),
        Column(f"target {words}", lambda result: _metric(result.gain.target, measure), always=True),
        Column("rounds to target", to_target("rounds", whole_numbers, counted=True)),
        Column("reference rounds", lambda result: whole_numbers(result.gain.reference_rounds)),
        Column("gain in rounds", gain_in("rounds")),
        Column("bytes to target", to_target("num_bytes", _bytes)),
        Column("reference bytes", lambda result: _bytes(result.gain.reference_bytes)),
        Column("gain in bytes", gain_in("bytes"), always=True),
        *(time if found.timed else []),
        Column(f"best {words}", lambda result: _metric(result.best, measure), always=True),
        Column(f"final {words}", lambda result: _metric(result.final, measure)),
        Column("rounds", lambda result: whole_numbers(result.rounds)),
        Column("bytes up", lambda result: _bytes(result.uplink_bytes)),
        Column("bytes down", lambda result: _bytes(result.downlink_bytes)),
        *(others(way) for way in OTHERS if any(way in result.other_bytes for result in found.results)),
        Column("saving", lambda result: _times(result.saving)),
        *(simulated if found.clocks else []),
        Column("seconds", lambda result: seconds(result.seconds)),
        *(compiling if any(result.compiling for result in found.results) else []),
    ]


def _to_target(gain: Gain, cell: str, counted: bool) -> str:
    """A cell of what was spent to the target; `counted`: with the number of seeds that reach it."""
    if not gain.reached:
        return NOT_REACHED if gain.compared and gain.target else NONE
    return f"{cell} ({gain.reached} of {gain.compared})" if counted and gain.reached < gain.compared else cell


def _metric(value: Statistic | None, measure: Measure) -> str:
    return NONE if value is None else measure.readable(value.mean, value.spread)


def _spread(spread: float, digits: int) -> str:
    """` ± spread`; empty for one seed, or where all are alike to the digits shown."""
    text = f"{spread:.{digits}f}"
    return f" ± {text}" if float(text) > 0 else ""


def _times(value: Statistic | None) -> str:
    return NONE if value is None else f"{value.mean:.2f}{_spread(value.spread, 2)}x"


def _percent(value: Statistic | None) -> str:
    return NONE if value is None else f"{100 * value.mean:.1f}{_spread(100 * value.spread, 1)}%"


def _duration(value: Statistic | None) -> str:
    return NONE if value is None else readable_duration(value.mean, value.spread, digits=3)


def _plain(value: Statistic | None, digits: int) -> str:
    if value is None:
        return NONE
    spread = _spread(value.spread, max(digits, 1))
    return f"{value.mean:.{max(digits, 1) if spread else digits}f}{spread}"


def _bytes(value: Statistic | None, per: str = "") -> str:
    """Three significant digits in the largest decimal unit that leaves at least 1; `per` follows the unit."""
    if value is None:
        return NONE
    power = 0
    while power < 5 and value.mean >= 999.5 * 1000**power:
        power += 1
    unit = ("B", "kB", "MB", "GB", "TB", "PB")[power]
    mean = value.mean / 1000**power
    digits = 0 if power == 0 or mean >= 99.95 else 1 if mean >= 9.995 else 2
    return f"{mean:.{digits}f}{_spread(value.spread / 1000**power, digits)} {unit}{per}"


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
    sentences += _about_time(found)
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
