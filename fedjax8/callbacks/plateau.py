"""Step sizes of the clients, lowered where a metric stalls.

    after `patience` evaluations without a better value:   scale <- max(factor * scale, least)

The scale multiplies every update of the clients' optimizer, as a learning rate does; it is 1 at first. Like
`ReduceLROnPlateau` of PyTorch and Keras, counted in evaluations.
"""

from fedjax8.callbacks.base import Callback, Decision, Memory, Moment, check_patience, watched
from fedjax8.directions import CLASSIFICATION, Measures
from fedjax8.errors import UserError


def plateau(
    patience: int = 3,
    factor: float = 0.5,
    metric: str | None = None,
    *,
    least: float = 0.01,
    direction: str = "auto",
    min_delta: float = 0.0,
    part: str = "test",
    measures: Measures = CLASSIFICATION,
) -> Callback:
    """A callback that lowers the clients' steps after `patience` values of the metric that were no better.

    Args:
      patience: values in a row, counted anew after each lowering.
      factor: above 0 and below 1.
      least: the smallest scale, above 0 and below 1.
      metric, direction, min_delta, part, measures: as of `early_stopping`.

    A round's scale is its `step_scale` in the log.
    """
    check_patience(patience)
    if not (0 < factor < 1 and 0 < least < 1):
        raise UserError(f"factor and least must be above 0 and below 1; got {factor} and {least}")
    watch = watched(metric, direction, part, min_delta, measures)

    def step(memory: Memory, moment: Moment) -> Decision:
        value = watch.read(moment, memory)
        if value is None:
            return Decision(memory)
        memory = watch.noted(value, memory, moment.round)
        if memory["since"] < patience:
            return Decision(memory)
        scale = max(memory["scale"] * factor, least)
        return Decision({**memory, "scale": scale, "since": 0}, step_scale=scale)

    return Callback(step, memory={"scale": 1.0}, reads=(watch.metric,), scales=True)


EXAMPLES = ({}, {"patience": 1, "factor": 0.1, "metric": "test_loss"})
