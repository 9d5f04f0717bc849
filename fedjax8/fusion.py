"""Where XLA must not fuse: steps of a program that are computed once and written to memory.

XLA computes cheap elementwise work anew for everything that uses it. On CPU this can cost far more than it saves: a
bit plane that computes its codes for every bit, a maximum over windows that is gathered, an element at a time, by the
loops for its rounded values, for its mask and for its gradient. `lax.optimization_barrier` is gone there before XLA
fuses. What it leaves alone is a conditional whose condition it cannot know, so that is what is used here: whether one
bit of some number is below two. Accelerators, where conditionals cost a synchronization, get the plain computation.
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
    nothing = lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
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
    first = lax.stop_gradient(x.ravel()[0])
    if jnp.issubdtype(x.dtype, jnp.floating):
        first = lax.bitcast_convert_type(first, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return apart(lambda x: x, first, x)
