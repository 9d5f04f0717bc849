"""The product of a layer on an FP8 grid, with its gradients: in float32 arithmetic, or on 8-bit operands.

    y = Q(x; beta) * Q(w; alpha)                                               forward
    dx = G(dy) * Q(w; alpha)^T,    dw = Q(x; beta)^T * G(dy)                   backward, then straight through each Q

Q rounds to nearest on the layer's grid; G is the identity, or rounds to a gradient format scaled to max|dy|.
*Simulated* means that the rounded values are float32 numbers; *native*, that the products get the 8-bit codes
themselves and their float32 sums are scaled afterwards. Both sum the same numbers; they differ in the order of the sums
and by a rounding of the scale. Kernels larger than a cache are simulated by blocks (`_blocks.py`), others as a whole.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import xla_cpu
from fedjax8.adapters import _blocks
from fedjax8.numerics import scales, straight_through
from fedjax8.numerics.formats import Format
from fedjax8.types import Array, Product

Clip = Array | None


WANTED = ()
"""Marks residuals of the forward pass that need the gradient of x."""


class Operand(NamedTuple):
    """A rounded array: the operand of a product, and the factor for its result."""

    values: Array
    factor: Array | float


def simulated(x: Array, alpha: Clip, fmt: Format) -> Operand:
    """Values of the grid in float32, those of 8-bit codes; `x` itself without a clip."""
    if alpha is None:
        return Operand(x, 1.0)

    def rounded(x: Array, alpha: Array) -> Array:
        return scales.decode(scales.encode(x, alpha, fmt, form="bits"), alpha, fmt)

    return Operand(xla_cpu.in_one_loop(rounded, x, alpha), 1.0)


def native(x: Array, alpha: Clip, fmt: Format) -> Operand:
    """8-bit codes; `x` itself without a clip."""
    if alpha is None:
        return Operand(x, 1.0)
    return Operand(scales.encode(x, alpha, fmt), scales.scale_for(alpha, fmt))


def multiply(product: Callable[[Array, Array], Array], a: Operand, b: Operand) -> Array:
    """One bilinear product of two operands, float32."""
    y = product(a.values, b.values)
    factor = a.factor * b.factor
    return y if isinstance(factor, float) else y * factor


class Backward(NamedTuple):
    """Results of the backward products, before they go straight through the rounding of x."""

    dkernel: Array
    dalpha: Clip
    dx: Array | None
    """Gradient of x, where it is wanted."""
    of_terms: Array | None
    """Terms of the gradient of beta times the kernel, otherwise: their sum over dy is that gradient, times beta."""


def quantized_product(
    product: Product,
    x: Array,
    kernel: Array,
    beta: Clip,
    alpha: Clip,
    fmt: Format,
    back: Format | None,
    eight_bit: bool,
) -> Array:
    """y of a layer whose input x and kernel are rounded to the grid of `fmt` with clips beta and alpha.

    Args:
      beta, alpha: clips, float32 scalars; an operand whose clip is None stays as it is.
      back: format of the gradients of y, or None.
      eight_bit: hand 8-bit operands to the product, forward, and backward too if `back` is given.

    Where the gradient of x is not used, as for the images of a first layer, it is not computed: that of its clip
    comes from a forward product, which costs less on CPU than the input's gradient. Backward products of 8-bit operands
    stay as they are, since the terms of that product are on no grid.

    Memory: of the forward pass x and the kernel are kept, which training keeps anyway; the backward pass rounds them
    again (or XLA, where it sees the two roundings together, keeps the first: 8-bit codes if `eight_bit`).
    """
    forward_operand = native if eight_bit else simulated
    backward_operand = native if eight_bit and back else simulated
    by_blocks = product.blocks > 1 and alpha is not None and not eight_bit

    @jax.custom_vjp
    def run(x, kernel, beta, alpha):
        x_operand = forward_operand(x, beta, fmt)
        if by_blocks:
            return _blocks.forward(product, x_operand.values, kernel, lambda rows: simulated(rows, alpha, fmt).values)
        y = multiply(product.forward, x_operand, forward_operand(kernel, alpha, fmt))
        return y.astype(jnp.result_type(x, kernel))

    def run_forward(x, kernel, beta, alpha):
        values = [None if argument is None else argument.value for argument in (x, kernel, beta, alpha)]
        return run(*values), (*values, WANTED if x.perturbed or backward_operand is native else None)

    def run_backward(saved, dy):
        x, kernel, beta, alpha, wanted = saved
        x_operand = backward_operand(x, beta, fmt)
        gradient = Operand(dy, 1.0) if back is None else backward_operand(dy, scales.max_abs(dy), back)
        terms = None
        if wanted is None and beta is not None:
            terms = straight_through.clip_terms(x, x_operand.values, beta)
        if by_blocks:
            got = _by_blocks(product, x_operand.values, kernel, alpha, fmt, gradient.values, terms, wanted)
        else:
            got = _as_a_whole(product, x_operand, kernel, alpha, fmt, gradient, terms, wanted, backward_operand)
        dkernel, dalpha, dx, of_terms = got
        dbeta = None
        if dx is not None:
            dx, dbeta = _through(x, beta, fmt, dx)
            dx = dx.astype(x.dtype)
        elif of_terms is not None:
            dbeta = jnp.sum(of_terms * gradient.values) / scales.floor_alpha(beta)
        if dalpha is not None:
            # Both wait for dalpha, which reads the old kernel. The optimizer, so that it steps on the kernel in place,
            # without a copy; the layers before, because this one has then freed its memory for them. With the 1.6
            # million parameters of `simple_cnn` on CPU, a client takes 29.1, 24.7 (kernel waits) or 22.6 MB (both). It
            # costs an addition; on accelerators it was not measured.
            dkernel = dkernel + 0.0 * dalpha
            dx = None if dx is None else dx + 0.0 * dalpha
        return dx, dkernel.astype(kernel.dtype), dbeta, dalpha

    run.defvjp(run_forward, run_backward, symbolic_zeros=True)
    return run(x, kernel, beta, alpha)


def _through(value: Array, clip: Clip, fmt: Format, cotangent: Array) -> tuple[Array, Clip]:
    """The gradients of a value and of its clip, given that of the rounded value."""
    if clip is None:
        return cotangent, None
    on_grid = simulated(value, clip, fmt).values
    return xla_cpu.in_one_loop(straight_through.pass_through, value, on_grid, clip, cotangent)


def _as_a_whole(product, x, kernel, alpha, fmt, gradient, terms, wanted, operand) -> Backward:
    """The backward products of operands x and gradient; `operand` makes one of the kernel."""
    on_grid = operand(kernel, alpha, fmt)
    dkernel, dalpha = _through(kernel, alpha, fmt, multiply(product.kernel_gradient, x, gradient))
    dx = None if wanted is None else multiply(product.input_gradient, gradient, on_grid)
    return Backward(dkernel, dalpha, dx, None if terms is None else product.forward(terms, on_grid.values))


def _by_blocks(product, x, kernel, alpha, fmt, dy, terms, wanted) -> Backward:
    """The backward products of float32 arrays x and dy. The gradient of the kernel is fused into its reader, for every
    element of the kernel; the rounding of x must not be."""
    x = xla_cpu.stored(x)
    of_kernel, of_terms, dx = _blocks.backward(
        product,
        x,
        kernel,
        rounded=lambda rows: simulated(rows, alpha, fmt).values,
        kernel_terms=lambda rows, on_grid: straight_through.clip_terms(rows, on_grid, alpha),
        input_terms=terms,
        dy=None if wanted is None else dy,
    )
    dkernel = straight_through.passed(kernel, alpha, product.kernel_gradient(x, dy))
    return Backward(dkernel, jnp.sum(of_kernel * dy) / scales.floor_alpha(alpha), dx, of_terms)
