"""A target metric, at which a run ends, for rounds and bytes to target."""

import math

from fedjax8.callbacks.base import Callback, Decision, Memory, Moment, watched
from fedjax8.directions import CLASSIFICATION, Measures, is_percent
from fedjax8.errors import UserError


def target(
    value: float,
    metric: str | None = None,
    *,
    direction: str = "auto",
    part: str = "test",
    measures: Measures = CLASSIFICATION,
) -> Callback:
    """A callback that ends a run when the metric is at `value` or beyond.

    Args:
      value: the target.
      metric, direction, part, measures: as of `early_stopping`.

    Raises:
      UserError: a value that no run reaches (not finite, an accuracy above 1) or that every run has (an accuracy of 0).
    """
    watch = watched(metric, direction, part, measures=measures)
    if not math.isfinite(value) or (is_percent(watch.metric) and not 0 < value <= 1):
        raise UserError(
            f"target value {value:g} of {watch.metric} is never reached, or at once; accuracies are above 0, at most 1"
        )

    def step(memory: Memory, moment: Moment) -> Decision:
        found = watch.read(moment, memory)
        if found is None:
            return Decision(memory)
        memory = watch.noted(found, memory, moment.round)
        reached = math.isfinite(found) and watch.sign * (found - value) >= 0
        return Decision(memory, f"{watch.metric} is {found:.6g}, the target {value:.6g}" if reached else "")

    return Callback(step, reads=(watch.metric,))


EXAMPLES = ({"value": 0.9}, {"value": 0.1, "metric": "test_loss"})
