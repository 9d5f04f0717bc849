"""Simulated seconds for people: in words, and as labels of an axis. Standard library only."""

import itertools
import math
from collections.abc import Sequence

UNITS = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "d"))
"""Seconds of each unit, from the smallest."""
ROUND = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0)
"""Round numbers of seconds and minutes."""
STEPS = (*(k * size for size in (1.0, 60.0) for k in ROUND), *(k * 3600.0 for k in (1, 2, 3, 6, 12)))
"""Distances of an axis' labels, from a second to half a day; others are 1, 2 or 5 times a power of ten, of days."""
LOGARITHMIC = (1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10_800.0, 36_000.0)
"""Labels of a logarithmic axis below a day."""


def unit_of(seconds: float) -> tuple[float, str]:
    """The largest unit, as (its seconds, its name), in which a duration is at least 1; seconds below that.

    >>> unit_of(59.0), unit_of(7200.0)
    ((1.0, 's'), (3600.0, 'h'))
    """
    return max((unit for unit in UNITS if unit[0] <= seconds), default=UNITS[0])


def readable_duration(seconds: float, spread: float = math.nan, digits: int = 2) -> str:
    """A duration with so many significant digits, and its deviation where these show it.

    >>> [readable_duration(s) for s in (0.0123, 12.0, 204.0, 7560.0, 450_000.0, 0.0)]
    ['0.012 s', '12 s', '3.4 min', '2.1 h', '5.2 d', '0 s']
    >>> readable_duration(7560.0, 600.0, digits=3), readable_duration(59.96)
    ('2.10 ± 0.17 h', '1.0 min')
    """
    if not 0 < seconds < math.inf:
        return f"{seconds:g} s"
    size, unit = unit_of(max(float(f"{seconds:.{digits}g}"), seconds))  # 59.96 s is shown as 1.0 min
    value, beside = seconds / size, spread / size
    decimals = max(0, digits - 1 - math.floor(math.log10(float(f"{value:.{digits}g}"))))
    text = f"{beside:.{decimals}f}"
    return f"{value:.{decimals}f}{f' ± {text}' if spread > 0 and float(text) > 0 else ''} {unit}"


def duration_ticks(low: float, high: float, most: int) -> list[float]:
    """Round durations from `low` to `high` for the labels of a linear axis, at most so many.

    >>> duration_ticks(0.0, 100.0, 6), duration_ticks(0.0, 7200.0, 6)
    ([0.0, 20.0, 40.0, 60.0, 80.0, 100.0], [0.0, 1800.0, 3600.0, 5400.0, 7200.0])
    """
    if not 0 < high - low < math.inf:
        return [low]
    shortest = (high - low) / (most - 1)
    step = next((step for step in STEPS if 1 <= shortest <= step), None)
    if step is None:
        size = 86400.0 if shortest > 1 else 1.0
        power = 10.0 ** math.floor(math.log10(shortest / size))
        step = next(size * k * power for k in (1, 2, 5, 10) if k * power * size >= shortest * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def logarithmic_duration_ticks(low: float, high: float, most: int) -> list[float]:
    """Round durations for the labels of a logarithmic axis, at most so many.

    >>> logarithmic_duration_ticks(2.0, 2000.0, 6)
    [3.0, 30.0, 180.0, 1800.0]
    """
    shorter = [k * 10.0**power for power in range(-9, 0) for k in (1, 3)]
    longer = [k * 10.0**power * 86400.0 for power in range(6) for k in (1, 3)]
    found = [tick for tick in (*shorter, *LOGARITHMIC, *longer) if low <= tick <= high]
    return found[:: max(1, math.ceil(len(found) / most))]


def duration_labels(ticks: Sequence[float]) -> list[str]:
    """Labels of evenly spaced durations, all in the unit of their distance.

    >>> duration_labels([0.0, 1800.0, 3600.0]), duration_labels([0.0, 0.5])
    (['0', '30 min', '60 min'], ['0', '0.5 s'])
    """
    distance = min((b - a for a, b in itertools.pairwise(ticks)), default=max(ticks, default=0.0))
    size, unit = unit_of(distance * (1 + 1e-9))
    return [f"{tick / size:.6g} {unit}" if tick else "0" for tick in ticks]
