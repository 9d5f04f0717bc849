"""Gradients of single examples, clipped and summed.

    sum_i min(1, C / |g_i|) g_i,     g_i the gradient of example i over all trainable leaves

Each term is at most C long, whatever float32 values it is made of (see `norms`); the sum is then rounded as float32
sums are. An example whose gradient is not finite adds nothing and is counted.

Examples are vmapped in groups. The number of groups that a batch fills is found on the device, so a Poisson sample
pays for its own rows and not for its lanes. Memory: a group's worth of gradients, except of dense layers: see
`dense_layers`.
"""

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.errors import UserError
from fedjax8.privacy import dense_layers as dense
from fedjax8.privacy import norms
from fedjax8.types import Array, Batch, BatchLoss, Key, PyTree, Variables

LARGEST = 1e30
"""Largest value of an example in the log: float32 can add up 10^8 of them."""


def clipped_sum(
    loss: BatchLoss, variables: Variables, batch: Batch, key: Key, bound: float, group: int
) -> tuple[PyTree, dict[str, Array]]:
    """(Sum over the batch's examples of their clipped gradients, sums for the log).

    Args:
      loss: `(variables, batch, key, multiply=None) -> (mean loss, (model state, sums))`, with the `multiply` of
        `Model.apply`.
      batch: `[B, ...]`, examples first and padding last.
      bound: C.
      group: examples whose gradients are in memory at once.

    The log has `train_clipped` too, the number of clipped examples, and `train_unusable`, those of them that added
    nothing, since their gradient is not finite. NaN counts as 0 in it, and no value as more than LARGEST, so that no
    example decides whether its client's contribution is finite. Like all of the log it isn't protected.

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
    one = {name: column[:1] for name, column in batch.items()} | {"mask": jnp.ones(1)}
    layers = dense.find_layers(loss, variables, one, key)
    leaves = jax.tree.leaves(variables.params)
    others, joined = dense.split(layers, variables.params)
    probes = dense.zero_probes(layers)

    def of_parts(others, probes, row, key):
        inputs: dict[str, Array] = {}
        tap = {"multiply": dense.tapped(layers, probes, inputs)} if layers else {}
        value, (_, sums) = loss(variables._replace(params=joined(others)), row, key, **tap)
        return value, (sums, inputs)

    def of_example(lane):
        row = {name: column[lane][None] for name, column in batch.items()} | {"mask": jnp.ones(1)}
        differentiated = jax.value_and_grad(of_parts, (0, 1), has_aux=True)
        (_, (sums, inputs)), (gradient, dy) = differentiated(others, probes, row, jax.random.fold_in(key, lane))
        sizes = {path: (norms.norm_of(inputs[path]), norms.norm_of(dy[path])) for path in layers}
        norm = norms.joined([norms.norm_of(gradient), *(norms.product(*pair) for pair in sizes.values())])
        sums = {name: jnp.clip(jnp.nan_to_num(x), -LARGEST, LARGEST) for name, x in sums.items()}
        sums |= {"train_clipped": norms.exceeds(norm, bound), "train_unusable": ~jnp.isfinite(norm.value)}
        shifts = {path: of_input.exponent for path, (of_input, _) in sizes.items()}
        return gradient, inputs, dy, norm, shifts, jax.tree.map(lambda x: x.astype(jnp.float32), sums)

    def add_group(index, total):
        lane = index * group + jnp.arange(group)
        real = (lane < lanes) & (batch["mask"].at[lane].get(mode="clip") > 0)
        gradients, inputs, dy, norm, shifts, sums = jax.vmap(of_example)(jnp.minimum(lane, lanes - 1))
        keep, factor = real & jnp.isfinite(norm.value), norms.factor_of(norm, bound)

        def weighted(x, factor=factor):
            mantissa, exponent = (f.reshape(-1, *[1] * (x.ndim - 1)) for f in factor)
            return _where(keep, norms.scaled(x, norms.Factor(mantissa, exponent)))

        def of_kernel(path, layer):  # powers of two go from x to dy, so that the two are not too large or too small
            shift = shifts[path]
            x = weighted(inputs[path], norms.Factor(jnp.ones_like(factor.mantissa), -shift))
            dy_ = weighted(dy[path], norms.Factor(factor.mantissa, factor.exponent + shift))
            return dense.weighted_sum(layer, x, dy_, leaves[layer.leaf])

        kernels = {layer.leaf: of_kernel(path, layer) for path, layer in layers.items()}
        summed = joined([jnp.sum(weighted(x), axis=0) for x in gradients], kernels)
        return trees.add(total, (summed, jax.tree.map(lambda x: jnp.sum(_where(real, x), axis=0), sums)))

    sums = jax.eval_shape(of_example, jnp.int32(0))[-1]
    zeros = trees.zeros_like((variables.params, sums))
    if groups == 1:
        return add_group(0, zeros)
    filled = jnp.ceil(jnp.sum(batch["mask"]) / group).astype(jnp.int32)
    return jax.lax.fori_loop(0, filled, add_group, zeros)


def _where(keep: Array, leaf: Array) -> Array:
    """`leaf` `[b, ...]`, zero where `keep` `[b]` is false."""
    return jnp.where(keep.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0.0)
