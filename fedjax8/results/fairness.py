"""Fairness over clients: mean, deviation, worst tenth and Jain's index of their accuracies.

    worst tenth = mean of the lowest ceil(n / 10) values (the highest where lower ones are better)
    Jain's index = (sum a)^2 / (n sum a^2),      1 if all are equal, 1 / n if one client has everything

Jain, Chiu, Hawe 1984, "A quantitative measure of fairness", equation 2. Every client counts as much as another, however
many rows it has. NumPy only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def worst_tenth(values: Sequence[float] | np.ndarray, higher: bool = True) -> float:
    """Mean of the worst tenth of values `[n]`, of at least one: the lowest where `higher` ones are better."""
    rising = np.sort(np.asarray(values, np.float64))
    tenth = -(-len(values) // 10)
    return float((rising[:tenth] if higher else rising[-tenth:]).mean())


def jain_index(values: Sequence[float] | np.ndarray) -> float:
    """Jain's index of values `[n]` from 0 up; 1 where all are 0, and so equal."""
    a = np.asarray(values, np.float64)
    squares = float((a * a).sum())
    return float(a.sum()) ** 2 / (len(a) * squares) if squares else 1.0


def spread(values: Sequence[float] | np.ndarray, metric: str = "accuracy", higher: bool = True) -> dict[str, float]:
    """The mean, by the metric's name, `deviation` (population), `worst_tenth` and `fairness` (Jain's index) of a metric
    of clients, `[n]`."""
    a = np.asarray(values, np.float64)
    return {
        metric: float(a.mean()),
        "deviation": float(a.std()),
        "worst_tenth": worst_tenth(a, higher),
        "fairness": jain_index(a),
    }


def in_words(clients: Sequence[Mapping[str, Any]]) -> str:
    """As `mean 0.871, deviation 0.05, worst tenth 0.78, fairness 0.99`, of the clients of all `clients.json` given,
    each measure of a run first and then its mean over runs; empty where none has accuracies."""
    found = [spread(of_run["accuracy"]) for of_run in clients if of_run.get("accuracy")]
    if not found:
        return ""
    mean = {name: float(np.mean([of_run[name] for of_run in found])) for name in found[0]}
    return (
        f"mean {mean['accuracy']:.4f}, deviation {mean['deviation']:.4f}, worst tenth {mean['worst_tenth']:.4f}, "
        f"fairness {mean['fairness']:.4f}"
    )
