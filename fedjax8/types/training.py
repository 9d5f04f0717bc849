"""What a client trains on, and how: its rows, its batch plan, the gradient of a step, local training."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fedjax8.types.models import Array, PyTree, nothing


class Pool(NamedTuple):
    """What all clients on a device share: all rows of a data set and whose they are, and what of the model is frozen.

    `columns` leaves `[N, ...]`; `order` int32 `[M]`: row numbers, those of one client side by side, or None where the
    rows themselves lie side by side; `frozen` as in `Variables`.
    """

    columns: dict[str, Array]
    order: Array | None
    frozen: Mapping[str, PyTree] = {}


class ClientRows(NamedTuple):
    """One client's view of the pool: rows `order[start : start + size]`. `start` and `size` are int32 scalars.

    `change` is `()`, or a `jax.tree_util.Partial` that is applied to every batch.
    """

    pool: Pool
    start: Array
    size: Array
    change: PyTree = ()


class BatchPlan(NamedTuple):
    """How clients cut their rows into local steps: whole epochs, or the same number of steps whatever the size."""

    batch_size: int
    epochs: int | None
    steps: int | None
    sampling: str = "shuffled"
    """One of SAMPLING. With `poisson`, `batch_size` is the expected size, and an epoch as many steps as otherwise."""


class StepGradient(NamedTuple):
    """How a client takes the gradient of a step, where it isn't that of a batch's mean loss: see `privacy`."""

    make: Callable[[Callable], Callable] | None = None
    """`loss(variables, batch, key, multiply=None) -> (mean loss, (model state, sums for the log))` to
    `gradient(variables, batch, key, expected) -> (gradients, model state, sums)`; None: the gradient of `loss`.
    `expected` is the float32 number of examples that a batch has in expectation. In a batch examples come first,
    padding last."""
    sampling: str | None = None
    """How the batch is drawn, one of `data.batches.SAMPLING`; None: as the batch plan says."""
    accounted: bool = False
    """Whether all gradients must be those of the batch plan's steps, because they are accounted for."""
    privacy: Callable[[int], dict[str, float]] = nothing
    """As `Algorithm.privacy`, of an example of a client."""
