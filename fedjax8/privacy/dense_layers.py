"""Norms and clipped sums of examples' gradients of dense layers, without the gradients themselves (Goodfellow 2015,
arXiv 1510.01799).

With x `[D]` the layer's input from example i and dy `[E]` the gradient of its output,

    |g_i| = |x_i| |dy_i|,      sum_i f_i g_i = sum_i x_i^T (f_i dy_i)

which needs memory for x and dy instead of D E per example. That is for layers that an example goes through once: over
several tokens g_i is a sum of products that may nearly cancel, and the sum of (X X^T) * (dY dY^T) that is its squared
norm (Bu et al. 2022, arXiv 2210.00038) loses the remainder in float32, so such gradients are computed. Layers are
found by tracing the model with a `multiply` that looks for kernels that are parameters as they are, used there and
nowhere else; all other parameters, those of quantized layers too, stay with whoever calls.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8.types import Array, Batch, BatchLoss, Key, Multiply, Product, PyTree, Variables


class TracedDense(NamedTuple):
    """A dense layer, traced on one example."""

    leaf: int
    """Number of its kernel among the leaves of the parameters, in tree order."""
    inputs: int
    """D: values along the kernel's summed leading axes."""
    y: jax.ShapeDtypeStruct
    """Shape of its output, `[1, ..., E]`."""


def find_layers(loss: BatchLoss, variables: Variables, row: Batch, key: Key) -> dict[str, TracedDense]:
    """Layers by path, of a `loss` that takes `multiply`, for a batch of one row."""
    leaves, structure = jax.tree.flatten(variables.params)
    seen: list[tuple[str, int, TracedDense | None]] = []

    def traced(own, of_layers):
        def multiply(path, product, x, kernel):
            leaf = next((i for i, known in enumerate(own) if known is kernel), -1)
            y = product.forward(x, kernel if leaf < 0 else of_layers[leaf])
            plain = leaf >= 0 and _is_plain(product, x, kernel)
            seen.append((path, leaf, _layer(leaf, x, kernel, y) if plain else None))
            return y

        return loss(variables._replace(params=jax.tree.unflatten(structure, own)), row, key, multiply=multiply)[0]

    jaxpr = jax.make_jaxpr(traced)(leaves, leaves).jaxpr
    used = {id(v) for equation in jaxpr.eqns for v in equation.invars}
    elsewhere = {i for i, v in enumerate(jaxpr.invars[: len(leaves)]) if id(v) in used}
    paths, kernels = [path for path, *_ in seen], [leaf for _, leaf, _ in seen]
    return {
        path: layer
        for path, leaf, layer in seen
        if layer and leaf not in elsewhere and paths.count(path) == 1 and kernels.count(leaf) == 1
    }


def _is_plain(product: Product, x: Array, kernel: Array) -> bool:
    """Whether y is a matrix product of x and the kernel themselves and nothing else, such as of rounded ones."""
    forward = jax.make_jaxpr(product.forward)(*map(jax.typeof, (x, kernel)))
    names = [equation.primitive.name for equation in forward.jaxpr.eqns]
    return names.count("dot_general") == 1 and set(names) <= {"dot_general", "reshape", "transpose"}


def _layer(leaf: int, x: Array, kernel: Array, y: Array) -> TracedDense | None:
    """None unless y is one row, x's last axes summed with the kernel's first, and both are smaller than the kernel."""
    for axes in range(1, kernel.ndim):
        kept = x.shape[: x.ndim - axes]
        if x.shape[len(kept) :] == kernel.shape[:axes] and y.shape == kept + kernel.shape[axes:]:
            inputs, outputs = math.prod(kernel.shape[:axes]), math.prod(kernel.shape[axes:])
            if math.prod(kept) == 1 and inputs + outputs < inputs * outputs:
                return TracedDense(leaf, inputs, jax.ShapeDtypeStruct(y.shape, y.dtype))
    return None


def tapped(layers: dict[str, TracedDense], probes: dict[str, Array], inputs: dict[str, Array]) -> Multiply:
    """A `multiply` that adds a layer's probe to its output, and puts its input in `inputs`."""

    def multiply(path, product, x, kernel):
        y = product.forward(x, kernel)
        if path in layers:
            inputs[path] = x
            y = y + probes[path]
        return y

    return multiply


def weighted_sum(layer: TracedDense, x: Array, dy: Array, kernel: Array) -> Array:
    """The sum over examples of their gradients of the kernel, of x and already weighted dy `[b, 1, ...]`.

    In float32 whatever a device does by default: rounded operands would lengthen a clipped gradient.
    """
    x, dy = x.reshape(-1, layer.inputs), dy.reshape(len(x), -1)
    return jnp.dot(x.T, dy, precision=jax.lax.Precision.HIGHEST).reshape(kernel.shape)


def zero_probes(layers: dict[str, TracedDense]) -> dict[str, Array]:
    """Zeros that `tapped` adds to outputs; their gradient is dY."""
    return {path: jnp.zeros(layer.y.shape, layer.y.dtype) for path, layer in layers.items()}


def split(layers: dict[str, TracedDense], params: PyTree) -> tuple[list[Array], Callable[..., PyTree]]:
    """(leaves that are no layer's kernel, a function that puts such leaves back among the kernels)."""
    leaves, structure = jax.tree.flatten(params)
    own = {layer.leaf for layer in layers.values()}

    def joined(others: list[Array], kernels: dict[int, Array] | None = None) -> PyTree:
        given = iter(others)
        kernels = {i: leaves[i] for i in own} if kernels is None else kernels
        mixed = [kernels[i] if i in own else next(given) for i in range(len(leaves))]
        return jax.tree.unflatten(structure, mixed)

    return [leaf for i, leaf in enumerate(leaves) if i not in own], joined
