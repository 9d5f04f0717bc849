"""Divergence of runs: its definition, and advice by its symptoms.

A run has **diverged** if at its last evaluation the test loss was not finite or above `TIMES_A_GUESS` times ln(number
of labels), which is the cross-entropy of a guess, or if in its last round no client's contribution could be used.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

TIMES_A_GUESS = 10.0
"""A model that overfits is seldom above 3 times; one that a step too large has thrown out is at hundreds."""
LARGEST_RATES = ("peak_value", "init_value", "value")
"""Settings of optax's schedules that give the largest rate, or one to make smaller."""


def loss_of_a_guess(columns: Mapping[str, np.ndarray]) -> float:
    """ln(number of labels) of columns with integer labels `y`, -1 for none; infinite for other columns."""
    labels = np.asarray(columns.get("y", np.zeros(0)))
    if not labels.size or not np.issubdtype(labels.dtype, np.integer):
        return math.inf
    return math.log(max(2, int(labels.max()) + 1))


def exploded(metrics: Mapping[str, Any], guess: float) -> bool:
    """Whether the metrics of an evaluation have a test loss that is not finite or far above that of a guess."""
    if "test_loss" not in metrics:
        return False
    loss = metrics["test_loss"]  # None where a file has it, which cannot hold NaN
    return loss is None or not math.isfinite(loss) or loss > TIMES_A_GUESS * guess


def nothing_usable(metrics: Mapping[str, Any]) -> bool:
    """Whether in a round contributions came and none could be used."""
    return bool(metrics.get("excluded")) and not metrics.get("clients")


def explanation(metrics: Mapping[str, Any], guess: float, unusable: int, config: Mapping[str, Any]) -> str:
    """A sentence on the end of a run and what to try; empty if it did not diverge.

    Args:
      metrics: the last round's, with those of the last evaluation.
      guess: see `loss_of_a_guess`.
      unusable: rounds up to the last one, one after another, of which no contribution could be used.
      config: the run's, plain; empty if it is not known.
    """
    spoiled = exploded(metrics, guess)
    if not spoiled and not unusable:
        return ""
    loss = metrics.get("test_loss")
    shown = "not finite" if loss is None or not math.isfinite(loss) else f"{loss:.3g}"
    rounds = f"in the last {unusable} rounds" if unusable > 1 else "in the last round"
    what = [f"the test loss is {shown}, that of a guess {guess:.3g}"] if spoiled and math.isfinite(guess) else []
    what = what or ([f"the test loss is {shown}"] if spoiled else [])
    what += [f"{rounds} no contribution could be used, and the model stayed as it was"] if unusable else []
    return f"diverged: {'; '.join(what)}. {_advice(spoiled and unusable == metrics.get('round'), unusable, config)}"


def _advice(from_the_start: bool, unusable: int, config: Mapping[str, Any]) -> str:
    """Advice: first on causes other than the step."""
    if from_the_start:
        return "The initial model's loss is so already: look at its weights (a pretrained file?) and at the rows."
    aggregate = dict(config.get("algorithm") or {}).get("aggregate") or {}
    if unusable and isinstance(aggregate, Mapping) and aggregate.get("name") == "norm_bound":
        return "The aggregator norm_bound leaves out updates that are too long: try a larger bound, or smaller steps."
    attack = dict(config.get("attack") or {}).get("name", "none")
    if attack != "none":
        return f"Clients attack by {attack}: try an aggregator that withstands it, such as median, or fewer attackers."
    optimizer = dict(dict(config.get("client") or {}).get("optimizer") or {})
    rate, where = optimizer.get("learning_rate"), "--config.client.optimizer.learning_rate"
    if isinstance(rate, Mapping):
        name = next((n for n in LARGEST_RATES if n in rate), None)
        if name is None:
            return f"Try smaller rates: the schedule {where}.name={rate.get('name')}."
        rate, where = rate[name], f"{where}.{name}"
    given = f" (it is {rate:g})" if isinstance(rate, int | float) else ""
    return f"Try a smaller {where}{given}."
