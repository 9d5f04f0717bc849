"""Local training: a client's rows, its batch plan, the gradient of a step, and the steps."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import optax

from fedjax8.types.models import Array, Batch, Key, Model, Multiply, PyTree, Variables, nothing


class Pool(NamedTuple):
    """Arrays that all clients on a device share: the rows of the data set and their owners, frozen parameters, and the
    round.

    `columns` leaves `[N, ...]`; `order` int32 `[M]`: row numbers, those of one client side by side, or None where the
    rows themselves lie side by side; `frozen` as in `Variables`; `round_number` int32: rounds done before this one;
    `step_scale` multiplies every update of every client's optimizer.
    """

    columns: dict[str, Array]
    order: Array | None
    frozen: Mapping[str, PyTree] = {}
    round_number: Array | int = 0
    step_scale: Array | float = 1.0


class ClientRows(NamedTuple):
    """One client's view of the pool: rows `order[start : start + size]`. `start` and `size` are int32 scalars.

    `change` is `()`, or a `jax.tree_util.Partial` that is applied to every batch, before padding is masked; it may add
    a `mask` of 0 and 1 of its own. `optimizer` is the state that the client has kept of its optimizer, where it keeps
    one, else `()`. Where clients may start from older models, `received` is the message down that this one got, and
    `factor` the float32 factor on its update; else `()`.
    """

    pool: Pool
    start: Array
    size: Array
    change: PyTree = ()
    optimizer: PyTree = ()
    received: PyTree = ()
    factor: PyTree = ()


class BatchPlan(NamedTuple):
    """The cut of a client's rows into local steps: whole epochs, or the same number of steps whatever the size."""

    batch_size: int
    epochs: int | None
    steps: int | None
    sampling: str = "shuffled"
    """One of SAMPLING. With `poisson`, `batch_size` is the expected size, and an epoch as many steps as otherwise."""


class BatchLoss(Protocol):
    """The mean loss of a batch, in training mode."""

    def __call__(
        self, variables: Variables, batch: Batch, key: Key, multiply: Multiply | None = None
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        """(float32 mean loss, (new model state, sums for the log)); frozen parameters are among the variables."""


class BatchGradient(Protocol):
    """The gradient that a step takes on a batch."""

    def __call__(
        self, variables: Variables, batch: Batch, key: Key, expected: Array | None
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        """(gradients, new model state, sums for the log).

        `expected` is the float32 number of examples that a batch has in expectation; None, if a `StepGradient` has no
        `make`. In a batch examples come first, padding last.
        """


class StepGradient(NamedTuple):
    """The rule by which a client takes the gradient of a step, where it isn't that of a batch's mean loss: see
    `privacy`."""

    make: Callable[[BatchLoss], BatchGradient] | None = None
    """The loss of a batch to the gradient of a step; None: the gradient of the loss."""
    sampling: str | None = None
    """One of `data.batches.SAMPLING`, the law by which batches are drawn; None: that of the batch plan."""
    accounted: bool = False
    """Whether privacy is accounted by the batch plan's steps, so that a client may take no other gradient."""
    privacy: Callable[[int], dict[str, float]] = nothing
    """Rounds done to the privacy loss of one example, for the log: `epsilon` at `delta`."""
    admits: Callable[[Any], object] = nothing
    """`(participation.Participants of a run)`: raises UserError where privacy is accounted for other participants; see
    `Algorithm.admits`."""


Adjust = Callable[[PyTree, PyTree, Batch, Key], PyTree]
"""`(gradients, params, batch, key) -> gradients`: the correction of SCAFFOLD, Mime and others to the gradient of a
step; batch and key are those that the gradients were taken with. Where privacy is accounted, reading the batch raises
UserError, and the key is another one."""


class Trained(NamedTuple):
    """The result of local training."""

    variables: Variables
    num_steps: Array
    """int32: steps taken."""
    report: dict[str, Array]
    """Sums over the examples seen: `train_loss`, one entry per metric, and `train_examples`."""
    optimizer: PyTree = ()
    """The optimizer's state after the last step where the client keeps it, else `()`."""


class Training(NamedTuple):
    """State of a client between two local steps."""

    variables: Variables
    optimizer: PyTree
    """State of the client's optimizer."""
    report: dict[str, Array]
    """Sums over the examples seen so far, as in `Trained`."""
    origin: PyTree
    """Parameters that training started from; `proximal` pulls toward them."""


class Train(Protocol):
    """All local steps of a client, by its batch plan."""

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
    """Some local steps of a client."""

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
    """The run's own factor on all updates: clients take their optimizer's steps otherwise unscaled."""
    return pool.step_scale


class LocalTraining(NamedTuple):
    """The functions by which a client trains, closed over their settings; `local.proximal` and `local.scheduled` wrap
    them.

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
    """`(variables, rows) -> Training` before the first step."""
    advance: Advance
    """Some local steps."""
    optimizer: optax.GradientTransformation
    plan: BatchPlan
    keep_optimizer: bool = False
    """Whether a client keeps the optimizer's state from round to round."""
    rate: Callable[[Pool], Array | float] = whole_rate
    """Pool to the factor on the optimizer's updates in this round; for algorithms that divide by the length of a
    step."""
    pull: float = 0.0
    """mu of the proximal term of `proximal`."""
