"""Directions of metrics: whether higher or lower values are better, and how their values are written for people.

A metric of a log has the rows it is of in front, as in `test_mae` or `float32_validation_accuracy`: its direction is
that of its longest known ending. What a task declares goes before the names known here.
"""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

HIGHER, LOWER = "higher", "lower"
AUTO = "auto"
CHOICES = (AUTO, HIGHER, LOWER)
"""Values of a `direction`; `auto`: by the metric's name."""
DIRECTIONS: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": HIGHER,
        "top_k": HIGHER,  # logged as top_5 and the like
        "top5_accuracy": HIGHER,
        "precision": HIGHER,
        "recall": HIGHER,
        "f1": HIGHER,
        "macro_f1": HIGHER,
        "auc": HIGHER,
        "average_precision": HIGHER,
        "r2": HIGHER,
        "fairness": HIGHER,
        "loss": LOWER,
        "error": LOWER,
        "calibration_error": LOWER,
        "perplexity": LOWER,
        "bits_per_token": LOWER,
        "mae": LOWER,
        "mse": LOWER,
        "rmse": LOWER,
        "simulated_seconds": LOWER,
        "waiting_share": LOWER,
        "consensus_distance": LOWER,
        "peak_rate": LOWER,
        "wasted_bytes": LOWER,
    }
)
"""Known metrics; `weighted_f1` is found by its ending."""
BOUNDED = ("accuracy", "top_k", "precision", "recall", "f1", "auc", "r2", "fairness", "waiting_share")
"""Metrics, by their endings, that are at most 1, so that a difference of 0.01 means the same for all of them."""
PERCENT = ("accuracy", "top_k", "waiting_share")
"""Metrics, by their endings, that are shares and written in percent."""
WORDS = {"mae": "MAE", "mse": "MSE", "rmse": "RMSE", "auc": "AUC", "r2": "R2", "f1": "F1"}
DIGITS = 4
"""Significant digits of a metric for people."""


class Measures(NamedTuple):
    """How a run is judged: its first metric, and the directions of all that its task has."""

    metric: str = "accuracy"
    """Without the rows in front."""
    directions: Mapping[str, str] = DIRECTIONS
    """Metric to `higher` or `lower`; others go by `DIRECTIONS`."""


CLASSIFICATION = Measures()
"""Measures of a run that says nothing else."""


def ends_with(metric: str, names: Mapping[str, str] | tuple[str, ...]) -> str:
    """The longest of the names that a metric is, or ends with after an underscore; empty if there is none.

    >>> ends_with("test_calibration_error", DIRECTIONS), ends_with("terror", DIRECTIONS)
    ('calibration_error', '')
    """
    metric = re.sub(r"(^|_)top_\d+$", r"\1top_k", metric)
    return max((n for n in names if metric == n or metric.endswith(f"_{n}")), key=len, default="")


def direction_of(metric: str, declared: Mapping[str, str] = DIRECTIONS) -> str:
    """`higher` or `lower`, by what is declared, else by the names known here; empty where neither has the metric."""
    for names in (declared, DIRECTIONS):
        if found := ends_with(metric, names):
            return names[found]
    return ""


def in_words(metric: str) -> str:
    """A metric's name for people.

    >>> in_words("accuracy"), in_words("macro_f1"), in_words("test_mae"), in_words("r2")
    ('accuracy', 'macro F1', 'test MAE', 'R2')
    """
    return " ".join(WORDS.get(word, word) for word in metric.split("_"))


def is_percent(metric: str) -> bool:
    """Whether a metric is written in percent."""
    return bool(ends_with(metric, PERCENT))


def is_bounded(metric: str) -> bool:
    """Whether a metric is at most 1 by its definition."""
    return bool(ends_with(metric, BOUNDED))


def decimals(value: float) -> int:
    """Decimals that give a number `DIGITS` significant digits, at least 4 from 0.1 on down, at most 6.

    >>> decimals(0.5), decimals(12.3), decimals(1234.5), decimals(0.001234), decimals(0.0)
    (4, 2, 0, 6, 4)
    """
    if not math.isfinite(value) or value == 0:
        return DIGITS
    return min(max(DIGITS - 1 - math.floor(math.log10(abs(value))), 0), DIGITS + 2)


def readable(metric: str, value: float, spread: float = math.nan) -> str:
    """A value of a metric, with its deviation where that is seen in the digits shown: in percent, or as a number.

    >>> readable("test_accuracy", 0.9123), readable("mae", 12.345, 0.5), readable("perplexity", 2.5e7)
    ('91.23%', '12.35 ± 0.50', '2.500e+07')
    """
    unit, scale = ("%", 100.0) if is_percent(metric) else ("", 1.0)
    value, spread = scale * value, scale * spread
    if abs(value) >= 1e6 or 0 < abs(value) < 1e-4:
        beside = f" ± {spread:.1e}" if spread > 0 else ""
        return f"{value:.3e}{beside}{unit}"
    digits = 2 if unit else decimals(value)
    text = f"{spread:.{digits}f}"
    return f"{value:.{digits}f}{f' ± {text}' if spread > 0 and float(text) > 0 else ''}{unit}"
