"""Gradients of single examples, clipped and summed.

    sum_i min(1, C / |g_i|) g_i,     g_i the gradient of example i over all trainable leaves

Examples are vmapped in groups. How many groups a batch fills is found on the device, so a Poisson sample costs what its
own rows cost and not what its lanes would. Memory: a group's worth of gradients.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.errors import UserError
from fedjax8.privacy.gaussian import factor_of, norm_of
from fedjax8.types import Array, Batch, Key, PyTree, Variables


def clipped_sum(
    loss: Callable, variables: Variables, batch: Batch, key: Key, bound: float, group: int
) -> tuple[PyTree, dict[str, Array]]:
    """(Sum over the batch's examples of their clipped gradients, sums for the log).

    Args:
      loss: `(variables, batch, key) -> (mean loss, (model state, sums))`.
      batch: `[B, ...]`, examples first and padding last.
      bound: C.
      group: examples whose gradients are in memory at once.

    The log has `train_clipped` too: how many were clipped. Like all of the log it isn't protected.

    Raises:
      UserError: if the model has state such as batch statistics, by which examples would depend on each other.
    """
    if jax.tree.leaves(variables.state):
        raise UserError(
            "private gradients need a model without batch statistics, whose examples do not depend on each other"
        )
    lanes = len(batch["mask"])
    group = min(group, lanes)
    groups = -(-lanes // group)

    def of_params(params, row, key):
        return loss(Variables(params, variables.state), row, key)

    def of_example(lane):
        row = {name: column[lane][None] for name, column in batch.items()} | {"mask": jnp.ones(1)}
        (_, (_, sums)), gradient = jax.value_and_grad(of_params, has_aux=True)(
            variables.params, row, jax.random.fold_in(key, lane)
        )
        norm = norm_of(gradient)
        return gradient, norm, sums | {"train_clipped": (norm > bound).astype(jnp.float32)}

    def add_group(index, total):
        lane = index * group + jnp.arange(group)
        real = (lane < lanes) & (batch["mask"].at[lane].get(mode="clip") > 0)
        gradients, norms, sums = jax.vmap(of_example)(jnp.minimum(lane, lanes - 1))
        factors, finite = jnp.where(real, factor_of(norms, bound), 0.0), jnp.isfinite(norms)

        def weighted(factors, keep, leaves):
            return jax.tree.map(lambda x: jnp.einsum("b,b...->...", factors, _where(keep, x)), leaves)

        new = weighted(factors, finite, gradients), weighted(real.astype(jnp.float32), real, sums)
        return trees.add(total, new)

    shapes = jax.eval_shape(of_example, jnp.int32(0))
    zeros = trees.zeros_like((shapes[0], shapes[2]))
    if groups == 1:
        return add_group(0, zeros)
    filled = jnp.ceil(jnp.sum(batch["mask"]) / group).astype(jnp.int32)
    return jax.lax.fori_loop(0, filled, add_group, zeros)


def _where(keep: Array, leaf: Array) -> Array:
    """`leaf` `[b, ...]`, zero where `keep` `[b]` is false."""
    return jnp.where(keep.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0.0)
