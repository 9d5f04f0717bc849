"""A layer of long short-term memory over whole sequences, fast on CPU, with the values of flax's `OptimizedLSTMCell`.

    a_t = x_t W + b + h_{t-1} R                       gates i, f, g, o = sigma, sigma, tanh, sigma of the parts of a_t
    c_t = f_t c_{t-1} + i_t g_t,      h_t = o_t tanh(c_t),      c_{-1} = h_{-1} = 0

Step by step there is one product, h R, forward and one, da R^T, backward. All else is done for all steps at once: x W
before the recurrence and its gradients after it; the factors of the backward recurrence before it, as far as they do
not depend on cotangents; and the gradient of R, which JAX would add up in an array as large as R at every step, as the
one product sum_t h_{t-1}^T da_t after it. R^T is written out once, as products with a transposed right side take twice
as long or more at a few rows. On one core of a Xeon, 80 steps of 10 sequences at 256 units take 1.6 times as long,
forward and backward, as a large product of as many multiply-adds.

sigma(a) is computed as (1 + tanh(a / 2)) / 2, so that one function serves all gates; flax's differs by roundings.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from fedjax8.types import Array


@jax.custom_vjp
def recurrence(inputs: Array, kernel: Array) -> Array:
    """The hidden states float32 `[T, B, H]` of `inputs` x W + b `[T, B, 4 H]` and `kernel` R `[H, 4 H]`."""
    return _scan(inputs, kernel, keep=False)


def _scan(inputs: Array, kernel: Array, keep: bool):
    """Hidden states `[T, B, H]`, if `keep` with gates `[T, B, 4 H]` and cells `[T, B, H]`."""
    units = len(kernel)
    scale = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), units)  # sigma for i, f and o, tanh for g

    def step(carry, a):
        cell, hidden = carry
        gates = jnp.tanh((a + hidden @ kernel) * scale) * scale + (1 - scale)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = f * cell + i * g
        hidden = o * jnp.tanh(cell)
        return (cell, hidden), (hidden, gates, cell) if keep else hidden

    zero = jnp.zeros((inputs.shape[1], units), inputs.dtype)
    return lax.scan(step, (zero, zero), inputs)[1]


def _forward(inputs: Array, kernel: Array):
    hidden, gates, cells = _scan(inputs, kernel, keep=True)
    return hidden, (hidden, gates, cells, kernel)


def _backward(saved: tuple[Array, ...], dhidden: Array):
    hidden, gates, cells, kernel = saved
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    squashed = jnp.tanh(cells)
    before = jnp.concatenate([jnp.zeros_like(cells[:1]), cells[:-1]])
    slopes = g * i * (1 - i), before * f * (1 - f), i * (1 - g * g), squashed * o * (1 - o)  # derivatives by a_t
    factors = jnp.concatenate(slopes, axis=-1), o * (1 - squashed * squashed), f
    back = kernel.T

    def step(carry, at):
        dh, dc = carry
        dy, slope, through_output, kept = at
        dh = dh + dy
        dc = dc + dh * through_output
        da = jnp.concatenate([dc, dc, dc, dh], axis=-1) * slope
        return (da @ back, dc * kept), da

    zero = jnp.zeros_like(cells[0])
    _, da = lax.scan(step, (zero, zero), (dhidden, *factors), reverse=True)
    return da, jnp.einsum("tbh,tba->ha", hidden[:-1], da[1:])


recurrence.defvjp(_forward, _backward)


class Kernel(nn.Module):
    """A kernel that its layer multiplies with many times; `multiply` sees it once, as the product of 1 and itself.

    So the qat adapter rounds it once a batch, and a recurrence may keep its own way to compute the gradient.
    """

    shape: tuple[int, ...]
    initializer: nn.initializers.Initializer
    scale: Callable[[Array, Array], Array] = jnp.multiply
    scale_cls: Callable | None = None  # beside it as in flax's layers, for `layer_interceptor`

    @nn.compact
    def __call__(self) -> Array:
        """The kernel."""
        return self.scale(jnp.float32(1), self.param("kernel", self.initializer, self.shape))


def orthogonal_gates(key: Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Array:
    """`[H, 4 H]`: an orthogonal matrix for each gate, as flax's cells start."""
    units = shape[0]
    make = functools.partial(nn.initializers.orthogonal(), shape=(units, units), dtype=dtype)
    return jnp.concatenate([make(k) for k in jax.random.split(key, 4)], axis=1)


class LSTM(nn.Module):
    """Sequences `[T, B, features]`, time first, to hidden states `[T, B, units]`.

    Parameters: `input/kernel` W `[features, 4 units]` and `input/bias` b, a dense layer, and `recurrent/kernel` R
    `[units, 4 units]`; columns are those of the gates i, f, g, o. Initial values: W normal of variance 1 / features,
    cut at two deviations, R an orthogonal matrix for each gate, b zero.
    """

    units: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Hidden states after each step."""
        inputs = nn.Dense(4 * self.units, name="input")(x)
        kernel = Kernel((self.units, 4 * self.units), orthogonal_gates, name="recurrent")()
        return recurrence(inputs, kernel)
