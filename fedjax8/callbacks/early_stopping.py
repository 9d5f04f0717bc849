"""Early stopping: a run ends after so many evaluations in a row without one better than the best."""

from fedjax8.callbacks.base import Callback, Decision, Memory, Moment, check_patience, watched
from fedjax8.directions import CLASSIFICATION, Measures


def early_stopping(
    patience: int = 5,
    metric: str | None = None,
    *,
    direction: str = "auto",
    min_delta: float = 0.0,
    part: str = "test",
    measures: Measures = CLASSIFICATION,
) -> Callback:
    """A callback that ends a run after `patience` values of the metric that were no better than the best before.

    Args:
      patience: values in a row; a NaN is one of them.
      metric: a key of `metrics.jsonl`, or a metric's name, such as `mae`: on validation rows, or on test rows where
        there are none; None: the run's first metric.
      direction: `higher`, `lower` or `auto`, by the metric's name.
      min_delta: least improvement over the best that counts.
      part: supplied by the program: `validation` or `test`.
      measures: supplied by the program: the run's first metric and directions.
    """
    check_patience(patience)
    watch = watched(metric, direction, part, min_delta, measures)

    def step(memory: Memory, moment: Moment) -> Decision:
        value = watch.read(moment, memory)
        if value is None:
            return Decision(memory)
        memory = watch.noted(value, memory, moment.round)
        if memory["since"] < patience:
            return Decision(memory)
        best = "never finite" if memory["best"] is None else f"{memory['best']:.6g} at round {memory['round']}"
        return Decision(memory, f"{watch.metric} has not been better for {patience} evaluations; its best is {best}")

    return Callback(step, reads=(watch.metric,))


EXAMPLES = ({}, {"patience": 2, "metric": "test_loss", "min_delta": 0.01})
