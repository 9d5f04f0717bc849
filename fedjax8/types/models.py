"""Models as pure functions, their variables, and the products of their layers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import jax

from fedjax8.display import Facts, name_of, shows

Array = jax.Array


Key = jax.Array


PyTree = Any


Batch = dict[str, Array]
"""Columns of one batch, `[B, ...]` each, and `mask` float32 `[B]`: 1 for an example, 0 for padding."""


class Ratio(NamedTuple):
    """A fraction that can be summed over clients before it is taken: float32 scalars `part` and `whole`."""

    part: Array
    whole: Array


class Product(NamedTuple):
    """The bilinear part of a layer, y = x * kernel. Float32 arrays or 8-bit floats in, sums in float32, float32 out."""

    forward: Callable[[Array, Array], Array]
    """`(x, kernel) -> y`; differentiable for float32 arrays."""
    input_gradient: Callable[[Array, Array], Array]
    """`(dy, kernel) -> dx`."""
    kernel_gradient: Callable[[Array, Array], Array]
    """`(x, dy) -> dkernel`."""
    blocks: int = 1
    """More than one where the kernel is larger than a core's cache and had better be read a block at a time: y is the
    sum, over so many equal parts, of `forward(x[:, part], kernel[part])`."""


Multiply = Callable[[str, Product, Array, Array], Array]
"""`(layer path, product, x, kernel) -> y`: replaces the product of every dense and convolution layer; see `Apply`.
Without it a layer computes `product.forward(x, kernel)`."""


class Variables(NamedTuple):
    """The arrays of a model: trained parameters, state beside them, and frozen parameters.

    `params` is a nested dict of float32 arrays; `state` (batch statistics and the like) is an empty dict for most
    models. `frozen`, a nested dict too, holds parameters that are not trained. They are the same for all clients and
    rounds: an algorithm never sees them (its `Variables` have none), no message, client state or checkpoint holds them,
    and local training finds them beside a client's rows (`data.batches.Pool`).
    """

    params: PyTree
    state: PyTree
    frozen: Mapping[str, PyTree] = {}


def unchanged(tree: PyTree) -> PyTree:
    """The tree that was given."""
    return tree


def nothing(*_: PyTree) -> dict[str, Any]:
    """An empty report."""
    return {}


class Apply(Protocol):
    """The forward pass of a model."""

    def __call__(
        self,
        variables: Variables,
        batch: Batch,
        *,
        key: Key | None = None,
        train: bool = False,
        multiply: Multiply | None = None,
    ) -> tuple[Array, PyTree]:
        """(outputs `[B, ...]`, new state). `key` is for dropout and other draws in training; `multiply` sees and may
        replace the product of every dense and convolution layer."""


CLASSES, BINARY, MARKS, VALUES = "classes", "binary", "marks", "values"
TARGETS = (CLASSES, BINARY, MARKS, VALUES)
"""Kinds of targets `y` that a loss takes: class numbers `[B]`, or `[B, T]` at every position of a sequence, -1 for
none; 0 or 1 `[B]`, by one output; a 0 or 1 for each of several labels `[B, L]`; numbers `[B]` or `[B, K]`."""


Loss = TypeVar("Loss", bound=Callable[..., Any])


def takes(targets: str) -> Callable[[Loss], Loss]:
    """Marks a loss with the kind of targets that it takes, one of TARGETS."""

    def marked(loss: Loss) -> Loss:
        loss.targets = targets  # type: ignore[attr-defined]
        return loss

    return marked


class SetMetric(NamedTuple):
    """A metric of a whole set of rows that is no mean over them, such as an F1 score.

    States of batches are merged over batches, devices and processes in any grouping; the value is taken once, on the
    host.
    """

    state: Callable[[Array, Array, Array], PyTree]
    """`(outputs [B, ...], targets [B, ...], mask float32 [B]) -> state`, on the device."""
    value: Callable[[PyTree], float]
    """The merged state, of NumPy arrays, to the metric; NaN where it has none."""
    rows: bool = False
    """States have leaves `[B, ...]`, an entry for each row, and are merged by putting them one after another, in the
    order of rows and without padding; otherwise they add up. The memory of such a state grows with the set."""


@shows
class Model(NamedTuple):
    """A model as pure functions. Adapters map a `Model` to a `Model`.

    Invariants: `apply` never draws from anything but `key`; `loss` and every metric are per example, so that masking
    and averaging stay outside; with `train=False` the returned state equals the given one. `apply` needs all
    variables of `init`, the frozen ones included.
    """

    init: Callable[[Key, Batch], Variables]
    """`(key, sample batch) -> Variables`. The batch gives shapes, and adapters may calibrate on its values."""
    apply: Apply
    """`(variables, batch, *, key=None, train=False, multiply=None) -> (outputs [B, ...], new state)`."""
    loss: Callable[[Array, Batch], Array]
    """`(outputs, batch) -> float32 [B]`."""
    metrics: Callable[[Array, Batch], dict[str, Array]]
    """`(outputs, batch) -> {name: float32 [B]}`, each averaged over examples by the caller."""
    project: Callable[[PyTree], PyTree] = unchanged
    """`params -> params`, projected onto the feasible set; called after every optimizer step."""
    views: Mapping[str, Apply] = {}
    """Other forward passes of the same variables, evaluated beside `apply` (for example `float32` of a quantized
    model)."""
    report: Callable[[PyTree], dict[str, Array]] = nothing
    """`params -> {name: scalar}`: values for the log at every evaluation (for example learned clips)."""
    sets: Mapping[str, SetMetric] = {}
    """Metrics of whole sets, at evaluations of the global model."""

    @property
    def targets(self) -> str:
        """One of TARGETS, the kind that the loss `takes`, by which rows are checked; empty: not known, rows pass."""
        return getattr(self.loss, "targets", "")

    def _facts(self) -> Facts:
        return {
            "apply": name_of(self.apply),
            "loss": name_of(self.loss),
            "targets": self.targets,
            "metrics_of_sets": ", ".join(self.sets),
            "views": ", ".join(self.views),
        }
