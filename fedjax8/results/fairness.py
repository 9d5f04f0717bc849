"""Fairness over clients: mean, deviation, worst tenth and Jain's index of their accuracies.

    worst tenth = mean of the lowest ceil(n / 10) values (the highest where lower ones are better)
    Jain's index = (sum a)^2 / (n sum a^2),      1 if all are equal, 1 / n if one client has everything

Jain, Chiu, Hawe 1984, "A quantitative measure of fairness", equation 2. Every client counts as much as another, however
many rows it has. NumPy only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax8.directions import LOWER, direction_of, readable
from fedjax8.directions import in_words as metric_in_words
from fedjax8.given import has_form


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
    """As `accuracy mean 87.10%, deviation 5.00%, worst tenth 78.00%, fairness 0.9900`, of the clients of all
    `clients.json` given, each measure of a run first and then its mean over runs; empty where none has values."""
    known = [(metric, values) for metric, values in map(values_by_client, clients) if values]
    found = [spread(values, metric, direction_of(metric) != LOWER) for metric, values in known if metric == known[0][0]]
    if not found:
        return ""
    metric = known[0][0]
    mean = {name: float(np.mean([of_run[name] for of_run in found])) for name in found[0]}
    said = {name: readable(metric, mean[name]) for name in (metric, "deviation", "worst_tenth")}
    return (
        f"{metric_in_words(metric)} mean {said[metric]}, deviation {said['deviation']}, worst tenth "
        f"{said['worst_tenth']}, fairness {mean['fairness']:.4f}"
    )


def values_by_client(clients: Mapping[str, Any]) -> tuple[str, Sequence[float]]:
    """The metric of a `clients.json`, and its values, one a client; none where the file has none."""
    metric = clients.get("metric", "accuracy")
    values = clients.get(metric, [])
    return metric, values if has_form(values, [float]) else []
