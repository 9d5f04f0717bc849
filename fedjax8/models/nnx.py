"""A flax nnx module as a `Model`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax8.models.linen import accuracy, cross_entropy
from fedjax8.types import Array, Batch, Model, Variables

LAYERS = (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.ConvTranspose)
"""nnx layers that have a `kernel`; their inputs are what `layer_input` sees."""


def _hook_layers(module: nnx.Module, layer_input: Callable[[str, Array], Array]) -> None:
    """Gives every layer of this (freshly merged) module a `__call__` that first asks `layer_input`."""
    for path, layer in list(nnx.iter_modules(module)):
        if isinstance(layer, LAYERS):
            name, original = "/".join(map(str, path)), type(layer)

            def call(self, inputs, *args, _name=name, _original=original, **kwargs):
                return _original.__call__(self, layer_input(_name, inputs), *args, **kwargs)

            layer.__class__ = type(original.__name__, (original,), {"__call__": call})


def from_nnx(
    create: Callable[[nnx.Rngs], nnx.Module],
    loss: Callable[[Array, Batch], Array] = cross_entropy,
    *,
    metrics: Callable[[Array, Batch], dict[str, Array]] = accuracy,
) -> Model:
    """`Model` of the nnx module that `create(rngs)` builds and that maps `batch["x"]` to outputs.

    `nnx.Param`s become `Variables.params`; batch statistics and the like `Variables.state`. Random streams (dropout)
    are neither: every call draws them from its `key`, or leaves the module in evaluation mode where there is none.

    Example:
      >>> from flax import nnx
      >>> model = from_nnx(lambda rngs: nnx.Linear(64, 10, rngs=rngs))
    """
    kinds = (nnx.Param, nnx.RngKey, nnx.RngCount, ...)

    def init(key, batch):
        _, params, _, _, state = nnx.split(create(nnx.Rngs(key)), *kinds)
        return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(state))

    def assemble(variables, key):
        structure, params, keys, counts, state = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0))), *kinds)
        nnx.replace_by_pure_dict(params, variables.params)
        nnx.replace_by_pure_dict(state, variables.state)
        base = jax.random.key(0) if key is None else key
        streams = iter(range(len(jax.tree.leaves(keys))))
        keys = jax.tree.map(lambda _: jax.random.fold_in(base, next(streams)), keys)
        return nnx.merge(structure, params, keys, jax.tree.map(lambda c: jnp.zeros(c.shape, c.dtype), counts), state)

    def apply(variables, batch, *, key=None, train=False, layer_input=None):
        module = assemble(variables, key)
        module.train() if train and key is not None else module.eval()
        if layer_input is not None:
            _hook_layers(module, layer_input)
        outputs = module(batch["x"])
        if not train:
            return outputs, variables.state
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState))))

    return Model(init, apply, loss, metrics)
