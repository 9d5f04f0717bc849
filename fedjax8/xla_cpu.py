"""Guards against XLA on CPU: computing a step again for each consumer, looping over short axes.

XLA computes cheap elementwise work anew for every consumer. On CPU this can cost far more than it saves: a
bit plane that computes its codes for every bit, a maximum over windows that is gathered, an element at a time, by the
loops for its rounded values, for its mask and for its gradient. `lax.optimization_barrier` is gone there before XLA
fuses. It leaves a conditional alone whose condition it cannot know, and so one is used here: whether one bit
of some number is below two. Accelerators, where conditionals cost a synchronization, get the plain computation.

The same conditional makes a loop over all elements of an array one loop, where the last axis is too short for vectors.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Out = TypeVar("Out")


def apart(f: Callable[..., Out], bits: jax.Array, *operands: jax.Array) -> Out:
    """f(*operands), computed on CPU from operands in memory, to memory.

    Args:
      f: of arrays, to a pytree of arrays.
      bits: an integer of any value, not a constant.

    Under `vmap` with `bits` of each client's own the conditional becomes a selection, and fusing is allowed again.
    """
    if jax.default_backend() != "cpu":
        return f(*operands)
    shapes = jax.eval_shape(f, *operands)
    nothing = lambda *x: jax.tree.map(lambda y: jnp.full(y.shape, zero(*x).astype(y.dtype)), shapes)
    return lax.cond(bits & 1 < 2, f, nothing, *operands)


def stored(x: jax.Array, everywhere: bool = False) -> jax.Array:
    """`x` itself, and so is its gradient; on CPU, each is written to memory before it is used.

    Args:
      x: any shape, of a floating or integer type.
      everywhere: on accelerators too, where a barrier does it.
    """
    if x.size == 0:
        return x
    if everywhere and jax.default_backend() != "cpu":
        return lax.optimization_barrier(x)
    return apart(lambda x: x, _bits(x), x)


VECTOR = 16
"""Numbers in a vector of a CPU, at most."""
WORTHWHILE = 4096
"""Elements from which on a conditional costs less than it saves."""


def in_one_loop(f: Callable[..., Out], x: jax.Array, *operands: jax.Array) -> Out:
    """f(x, *operands) of an f that goes element by element, or sums over all of them; on CPU in vectors for any shape.

    XLA loops over each axis, so over images of 6 channels it goes number by number. To reshape is not enough, since it
    takes reshapes into its loops.

    Args:
      f: of `x` and operands; those of the shape of `x` may come as vectors. Results that are vectors of that length
        get the shape of `x`.
    """
    last = next((size for size in reversed(x.shape) if size > 1), VECTOR)
    if jax.default_backend() != "cpu" or last >= VECTOR or x.size < WORTHWHILE:
        return f(x, *operands)
    flat = [y.ravel() if jnp.shape(y) == x.shape else y for y in operands]
    out = apart(f, _bits(x), x.ravel(), *flat)
    return jax.tree.map(lambda y: y.reshape(x.shape) if y.shape == (x.size,) else y, out)


def zero(*arrays: jax.Array) -> jax.Array:
    """A float32 0 that varies over devices under `jax.shard_map` where an array does, as loops and branches ask."""
    firsts = [x.ravel()[0] for x in arrays if x.size and jnp.issubdtype(x.dtype, jnp.number)]
    return sum((jnp.where(False, first, 0).astype(jnp.float32) for first in firsts), jnp.float32(0))


def _bits(x: jax.Array) -> jax.Array:
    """The first number of `x` as an integer."""
    first = lax.stop_gradient(x.ravel()[0])
    if jnp.issubdtype(x.dtype, jnp.floating):
        return lax.bitcast_convert_type(first, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return first
