"""The type of monitors, which estimate the variance of workers' models from small messages."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax8.types import Array, PyTree


class Monitor(NamedTuple):
    """An estimate H of the variance of workers' models, from a small message of each worker.

    Invariant: with probability 1, or 1 - delta where it is stated, `estimate` is at least the variance of the models
    about their mean. Every worker uses the same functions with the same settings.
    """

    estimate: Callable[[Any, Array], Array]
    """`(Reduced of the workers' messages, int32 number of the step from 1) -> float32 H`, compared to the threshold.
    A monitor that sends nothing gets None for the reduction."""
    sends: Callable[[PyTree, PyTree, Array], PyTree] | None = None
    """`(drift, direction, threshold) -> small tree` that a worker sends up at a check; None: nothing is sent.
    `drift` is the worker's params minus the last common ones, `direction` a unit vector of the same structure that all
    workers know, or `()`."""
    watch: Callable[[PyTree], PyTree] = lambda sent: ()
    """A worker's message to the values in it whose largest over workers `estimate` needs (`Reduced.highest`)."""
    directed: bool = False
    """Whether `sends` uses `direction`."""
    exact: bool = False
    """Whether the simulator, which knows all models, replaces the estimate by the variance itself."""
    compat_bytes: float | None = None
    """Bytes per worker and check by the authors' formula, where these are not the size of the message."""
    compat_start: bool = True
    """Whether the authors' formula charges one exchange of models more than there are synchronizations."""
