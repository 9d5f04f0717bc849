"""What a monitor is: how workers tell how far their models are apart without sending them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax8.types import Array, PyTree


class Monitor(NamedTuple):
    """How workers that train on their own tell how far their models are apart, without sending them.

    Invariant: with probability 1, or 1 - delta where it is stated, `estimate` is at least the variance of the models
    about their mean. Every worker uses the same functions with the same settings.
    """

    estimate: Callable[[Any, Array], Array]
    """`(reduction of what workers sent, int32 number of the step from 1) -> float32 H`, held against the threshold.
    A monitor that sends nothing gets None for the reduction."""
    sends: Callable[[PyTree, PyTree, Array], PyTree] | None = None
    """`(drift, direction, threshold) -> small tree` that a worker sends up at a check; None: nothing is sent.
    `drift` is the worker's params minus the last common ones, `direction` a unit vector of the same structure that all
    workers know, or `()`."""
    watch: Callable[[PyTree], PyTree] = lambda sent: ()
    """What a worker sent to the values in it whose largest over workers `estimate` needs (`Reduced.highest`)."""
    directed: bool = False
    """Whether `sends` uses `direction`."""
    exact: bool = False
    """Whether the simulator, which knows all models, puts the variance itself in the place of the estimate."""
    compat_bytes: float | None = None
    """Bytes per worker and check by the authors' formula, where these are not the size of what is sent."""
    compat_start: bool = True
    """Whether the authors' formula charges one exchange of models more than there are synchronizations."""
