"""Axes of simulated time for matplotlib: labels in seconds, minutes, hours or days."""

from typing import Any

from fedjax8.results.durations import duration_labels, duration_ticks, logarithmic_duration_ticks, readable_duration


def of_durations(axis: Any, log: bool, most: int) -> None:
    """Labels an axis of seconds, with at most so many labels; they follow where it is zoomed."""
    from matplotlib.ticker import Formatter, Locator, NullFormatter, NullLocator

    class RoundDurations(Locator):
        def __call__(self) -> list[float]:
            return self.tick_values(*axis.get_view_interval())

        def tick_values(self, vmin: float, vmax: float) -> list[float]:
            low, high = sorted((float(vmin), float(vmax)))
            return logarithmic_duration_ticks(low, high, most) if log else duration_ticks(max(low, 0.0), high, most)

    class Durations(Formatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return readable_duration(x)

        def format_ticks(self, values: Any) -> list[str]:
            return [duration_labels([value])[0] for value in values] if log else duration_labels(list(values))

    axis.set_major_locator(RoundDurations())
    axis.set_major_formatter(Durations())
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
