"""What a client trains on, and how: its rows, its batch plan, the gradient of a step, local training."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from fedjax8.types.models import Array, Key, Model, PyTree, Variables, nothing


class Pool(NamedTuple):
    """What all clients on a device share: all rows of a data set and whose they are, and what of the model is frozen.

    `columns` leaves `[N, ...]`; `order` int32 `[M]`: row numbers, those of one client side by side, or None where the
    rows themselves lie side by side; `frozen` as in `Variables`; `step_scale` multiplies every update of every client.
    """

    columns: dict[str, Array]
    order: Array | None
    frozen: Mapping[str, PyTree] = {}
    step_scale: Array | float = 1.0


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
    admits: Callable[[Any], object] = nothing
    """As `Algorithm.admits`."""


Adjust = Callable[[PyTree, PyTree], PyTree]
"""`(gradients, params) -> gradients`: what FedProx, SCAFFOLD and others change about a step."""


class Trained(NamedTuple):
    """What local training yields."""

    variables: Variables
    num_steps: Array
    """int32: steps taken."""
    report: dict[str, Array]
    """Sums over the examples seen: `train_loss`, one entry per metric, and `train_examples`."""


class Training(NamedTuple):
    """A client in the midst of its training."""

    variables: Variables
    optimizer: PyTree
    """State of the client's optimizer."""
    report: dict[str, Array]
    """As of `Trained`, so far."""


class LocalTraining(NamedTuple):
    """How a client trains, with its settings closed over.

    Variables come and go without frozen parameters: those are read from `rows.pool`, once for all clients.
    """

    train: Callable[..., Trained]
    """`(variables, rows, key, *, adjust=None, step_scale=1.0) -> Trained`; `step_scale` multiplies every update."""
    full_gradient: Callable[[Variables, ClientRows, Key], PyTree]
    """Gradient of the mean loss over all of a client's examples, zeros for an empty client."""
    model: Model
    start: Callable[[Variables, ClientRows], Training]
    """Before the first step."""
    advance: Callable[..., Training]
    """`(training, rows, key, first, count, *, adjust=None, step_scale=1.0) -> Training`: steps number `first` to
    `first + count - 1` of those that `train` takes with this key. Steps beyond them begin further epochs."""
    optimizer: optax.GradientTransformation
    plan: BatchPlan
