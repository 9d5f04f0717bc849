"""What a client trains on, and how: its rows, its batch plan, the gradient of a step, local training."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import optax

from fedjax8.types.models import Array, Batch, Key, Model, PyTree, Variables, nothing


class Pool(NamedTuple):
    """What all clients on a device share: all rows of a data set and whose they are, what of the model is frozen, and
    the round.

    `columns` leaves `[N, ...]`; `order` int32 `[M]`: row numbers, those of one client side by side, or None where the
    rows themselves lie side by side; `frozen` as in `Variables`; `round_number` int32: rounds done before this one;
    `step_scale` multiplies every update of every client.
    """

    columns: dict[str, Array]
    order: Array | None
    frozen: Mapping[str, PyTree] = {}
    round_number: Array | int = 0
    step_scale: Array | float = 1.0


class ClientRows(NamedTuple):
    """One client's view of the pool: rows `order[start : start + size]`. `start` and `size` are int32 scalars.

    `change` is `()`, or a `jax.tree_util.Partial` that is applied to every batch. `optimizer` is the state that the
    client has kept of its optimizer, where it keeps one, else `()`.
    """

    pool: Pool
    start: Array
    size: Array
    change: PyTree = ()
    optimizer: PyTree = ()


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


Adjust = Callable[[PyTree, PyTree, Batch, Key], PyTree]
"""`(gradients, params, batch, key) -> gradients`: what SCAFFOLD, Mime and others change about a step; batch and key are
those that the gradients were taken with. Where gradients are accounted for, reading the batch raises UserError, and the
key is another one."""


class Trained(NamedTuple):
    """What local training yields."""

    variables: Variables
    num_steps: Array
    """int32: steps taken."""
    report: dict[str, Array]
    """Sums over the examples seen: `train_loss`, one entry per metric, and `train_examples`."""
    optimizer: PyTree = ()
    """The optimizer's state after the last step where the client keeps it, else `()`."""


class Training(NamedTuple):
    """A client in the midst of its training."""

    variables: Variables
    optimizer: PyTree
    """State of the client's optimizer."""
    report: dict[str, Array]
    """As of `Trained`, so far."""
    origin: PyTree
    """Parameters that training started from; what `proximal` pulls toward."""


class Train(Protocol):
    """Trains a client by its batch plan."""

    def __call__(
        self,
        variables: Variables,
        rows: ClientRows,
        key: Key,
        *,
        adjust: Adjust | None = None,
        step_scale: Array | float = 1.0,
    ) -> Trained:
        """The client after its local steps; `step_scale` multiplies every update of the optimizer."""


class Advance(Protocol):
    """Takes some steps of a client's training."""

    def __call__(
        self,
        training: Training,
        rows: ClientRows,
        key: Key,
        first: Array | int,
        count: Array | int,
        *,
        adjust: Adjust | None = None,
        step_scale: Array | float = 1.0,
    ) -> Training:
        """The client after steps number `first` to `first + count - 1` of those that `train` takes with this key. Steps
        beyond them begin further epochs."""


def whole_rate(pool: Pool) -> Array | float:
    """The run's own factor on all updates: clients take the steps of their optimizer."""
    return pool.step_scale


class LocalTraining(NamedTuple):
    """How a client trains, with its settings closed over. `local.proximal` and `local.scheduled` make another of it.

    Variables come and go without frozen parameters: those are read from `rows.pool`, once for all clients.
    """

    train: Train
    """Local steps by the batch plan."""
    full_gradient: Callable[[Variables, ClientRows, Key], PyTree]
    """Gradient of the mean loss over all of a client's examples, zeros for an empty client."""
    gradient: Callable[[Variables, ClientRows, Batch, Key], PyTree]
    """`(variables, rows, batch, key) -> gradients` of one batch's mean loss, as a step takes them."""
    mean_loss: Callable[[Variables, ClientRows], Array]
    """float32 mean loss over all of a client's examples, in evaluation mode; 0 for an empty client."""
    model: Model
    start: Callable[[Variables, ClientRows], Training]
    """Before the first step."""
    advance: Advance
    """Some local steps."""
    optimizer: optax.GradientTransformation
    plan: BatchPlan
    keep_optimizer: bool = False
    """Whether a client keeps the optimizer's state from round to round."""
    rate: Callable[[Pool], Array | float] = whole_rate
    """What clients share to the factor on the optimizer's updates in this round; for algorithms that divide by the
    length of a step."""
    pull: float = 0.0
    """mu of the proximal term of `proximal`."""
