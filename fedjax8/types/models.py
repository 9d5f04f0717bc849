"""Models as pure functions, their variables, and the products of their layers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

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
