"""A flax nnx module as a `Model`."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax8.errors import UserError
from fedjax8.keys import random_key
from fedjax8.models.linen import TRAIN_ARGUMENTS, accuracy, cross_entropy
from fedjax8.models.products import conv_stand_in, dot_stand_in
from fedjax8.types import Array, Batch, Model, Multiply, Variables

PRODUCTS = {
    nnx.Linear: ("dot_general", dot_stand_in),
    nnx.LinearGeneral: ("dot_general", dot_stand_in),
    nnx.Conv: ("conv_general_dilated", conv_stand_in),
}
"""nnx layers whose product `multiply` sees: the field that flax takes it from, and its replacement."""


def _hook_layers(module: nnx.Module, multiply: Multiply) -> None:
    """Lets `multiply` do the product of every layer of this (freshly merged) module."""
    for path, layer in list(nnx.iter_modules(module)):
        for kind, (field, stand_in) in PRODUCTS.items():
            if isinstance(layer, kind):
                make = getattr(layer, f"{field}_cls", None)  # flax asks it first
                plain = getattr(layer, field) if make is None else make()
                setattr(layer, field, stand_in(multiply, "/".join(map(str, path)), plain))
                if make is not None:
                    setattr(layer, f"{field}_cls", None)


def _check_call(module: nnx.Module) -> None:
    """Raises UserError for an argument for training or evaluation, which nothing passes."""
    takes = inspect.signature(type(module).__call__).parameters
    # One whose default is None leaves it to the module's mode, which is set.
    left = [name for name in TRAIN_ARGUMENTS if name in takes and takes[name].default is not None]
    if left:
        raise UserError(
            f"{type(module).__name__}.__call__ takes {left[0]!r}, which nobody passes; leave it out: nnx puts "
            "modules into training and evaluation by module.train() and module.eval()"
        )


def from_nnx(
    create: Callable[[nnx.Rngs], nnx.Module],
    loss: Callable[[Array, Batch], Array] = cross_entropy,
    *,
    metrics: Callable[[Array, Batch], dict[str, Array]] = accuracy,
) -> Model:
    """`Model` of the nnx module that `create(rngs)` builds and that maps `batch["x"]` to outputs.

    `nnx.Param`s become `Variables.params`; batch statistics and the like `Variables.state`. Random streams (dropout)
    are neither: every call draws them from its `key`, or leaves the module in evaluation mode where there is none.

    Raises UserError for a module in place of a function that builds one, and, when it is built, for one whose
    `__call__` takes an argument such as `train`, which nothing passes.

    Example:
      >>> from flax import nnx
      >>> model = from_nnx(lambda rngs: nnx.Linear(64, 10, rngs=rngs))
    """
    if isinstance(create, nnx.Module) or not callable(create):
        raise UserError(
            "from_nnx takes a function that builds a module, such as lambda rngs: nnx.Linear(64, 10, rngs=rngs), not "
            f"a {type(create).__name__}"
        )
    kinds = (nnx.Param, nnx.RngKey, nnx.RngCount, ...)

    def init(key, batch):
        module = create(nnx.Rngs(key))
        _check_call(module)
        _, params, _, _, state = nnx.split(module, *kinds)  # type: ignore[misc]  # as many as kinds
        return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(state))

    def assemble(variables, key):
        made = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0))), *kinds)
        structure, params, keys, counts, state = made  # type: ignore[misc]  # as many as kinds
        nnx.replace_by_pure_dict(params, variables.params)
        nnx.replace_by_pure_dict(state, variables.state)
        base = random_key(0) if key is None else key
        streams = iter(range(len(jax.tree.leaves(keys))))
        keys = jax.tree.map(lambda _: jax.random.fold_in(base, next(streams)), keys)
        return nnx.merge(structure, params, keys, jax.tree.map(lambda c: jnp.zeros(c.shape, c.dtype), counts), state)

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        module = assemble(variables, key)
        module.train() if train and key is not None else module.eval()
        if multiply is not None:
            _hook_layers(module, multiply)
        outputs = module(batch["x"])
        if not train:
            return outputs, variables.state
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState))))

    return Model(init, apply, loss, metrics)
