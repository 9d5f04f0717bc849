"""A flax linen module as a `Model`."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from fedjax8.errors import UserError
from fedjax8.models._lstm import Kernel
from fedjax8.models.products import conv_stand_in, dot_stand_in, scale_stand_in
from fedjax8.types import CLASSES, Array, Batch, Model, Multiply, Variables, takes

PRODUCTS = {
    nn.Dense: ("dot_general", dot_stand_in),
    nn.DenseGeneral: ("dot_general", dot_stand_in),
    nn.Conv: ("conv_general_dilated", conv_stand_in),
    Kernel: ("scale", scale_stand_in),
}
"""Linen layers whose product `multiply` sees: the field that flax takes it from, and its replacement."""


TRAIN_ARGUMENTS = ("train", "training", "is_training", "deterministic", "use_running_average", "eval", "inference")
"""Usual names of the argument that distinguishes training from evaluation."""
NEGATED = ("deterministic", "use_running_average", "eval", "inference")
"""Those of them that are true in evaluation."""


def check_train_argument(call: Callable, name: str, given: str | None, *, attributes: frozenset[str]) -> None:
    """Raises UserError unless the argument of `call` for training or evaluation is the one given, if there is one.

    Left at its default, batch norm and dropout would never train. Fields of the module, `attributes`, cannot be changed
    from call to call.
    """
    takes = inspect.signature(call).parameters
    if given is not None and given not in takes:
        raise UserError(
            f"train_argument is {given!r}, but {name}.__call__ takes {', '.join(takes)}; name the one that tells "
            "training from evaluation, or leave it out"
        )
    found = [argument for argument in TRAIN_ARGUMENTS if argument in takes]
    if given is None and found:
        raise UserError(
            f"{name}.__call__ takes {found[0]!r}, which nobody would pass: batch norm and dropout would never train; "
            f"give train_argument={found[0]!r}"
        )
    fields = [argument for argument in TRAIN_ARGUMENTS if argument in attributes]
    if given is None and fields:
        raise UserError(
            f"{name} has the field {fields[0]!r}, which stays as it is in training and evaluation; make it an argument "
            f"of __call__ and give train_argument={fields[0]!r}"
        )


def per_row(values: Array, labels: Array) -> Array:
    """`[B]`: the value of each row; of label sequences `[B, T]` the mean over the positions with a label, not -1."""
    if labels.ndim == 1:
        return values
    real = labels >= 0
    return jnp.sum(jnp.where(real, values, 0.0), axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)


@takes(CLASSES)
def cross_entropy(logits: Array, batch: Batch) -> Array:
    """Softmax cross-entropy against integer labels `batch["y"]`, `[B]` or `[B, T]`; float32 `[B]`."""
    labels = batch["y"]
    return per_row(optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels), labels)


def accuracy(logits: Array, batch: Batch) -> dict[str, Array]:
    """1 where the largest logit is the label, for label sequences the share of such positions; float32 `[B]`. Logits
    with NaN, or without a finite largest one, name no class."""
    hits = (jnp.argmax(logits, axis=-1) == batch["y"]) & jnp.isfinite(jnp.max(logits, axis=-1))
    return {"accuracy": per_row(hits.astype(jnp.float32), batch["y"])}


@contextlib.contextmanager
def intercepted(interceptor: Callable[..., Any]) -> Iterator[None]:
    """`nn.intercept_methods(interceptor)`, for the block alone, also under `python -O`.

    flax takes its interceptor away within an `assert`, which -O leaves out: it would see the calls of all modules from
    then on. The one that flax is given passes calls on after the block, and holds nothing.
    """
    given: list[Callable[..., Any]] = [interceptor]

    def within_block(next_call, args, kwargs, context):
        return given[0](next_call, args, kwargs, context) if given else next_call(*args, **kwargs)

    try:
        with nn.intercept_methods(within_block):
            yield
    finally:
        given.clear()


def layer_interceptor(multiply: Multiply) -> contextlib.AbstractContextManager[None]:
    """In its block `multiply` does the product of every layer in `PRODUCTS`."""

    def intercept(next_call, args, kwargs, context):
        module = context.module
        found = next((entry for kind, entry in PRODUCTS.items() if isinstance(module, kind)), None)
        if found is None or context.method_name != "__call__":
            return next_call(*args, **kwargs)
        field, stand_in = found
        before = {name: getattr(module, name) for name in (field, f"{field}_cls")}
        make = before[f"{field}_cls"]  # flax asks it first
        plain = make() if make is not None else before[field]
        during = {field: stand_in(multiply, "/".join(module.path), plain), f"{field}_cls": None}
        try:
            # A bound module is frozen for its users; this one is ours until the call is over.
            for name, value in during.items():
                object.__setattr__(module, name, value)
            return next_call(*args, **kwargs)
        finally:
            for name, value in before.items():
                object.__setattr__(module, name, value)

    return intercepted(intercept)


def from_linen(
    module: nn.Module,
    loss: Callable[[Array, Batch], Array] = cross_entropy,
    *,
    metrics: Callable[[Array, Batch], dict[str, Array]] = accuracy,
    train_argument: str | None = None,
    rngs: tuple[str, ...] = ("dropout",),
) -> Model:
    """`Model` of a linen module that maps `batch["x"]` to outputs.

    `train_argument` names a boolean argument of `module.__call__` that tells training from evaluation, if it has one;
    with `train_argument="deterministic"`, `"use_running_average"`, `"eval"` or `"inference"` the value is negated, as
    those names ask. Collections other than `params` become `Variables.state`.

    Raises:
      UserError: no module, or a class of modules; a module with such an argument, by one of the usual names, that is
        not named here, or a `train_argument` that it does not take.

    Example:
      >>> from flax import linen as nn
      >>> model = from_linen(nn.Dense(10))
    """
    if not isinstance(module, nn.Module):
        made = inspect.isclass(module) and issubclass(module, nn.Module)
        advice = f"make one: {module.__name__}(...)" if made else "see from_nnx for those of nnx"
        raise UserError(f"from_linen takes a linen module, such as nn.Dense(10), but got {module!r}; {advice}")
    if not callable(module):
        raise UserError(f"from_linen calls the module, but {type(module).__name__} has no __call__; give it one")
    fields = frozenset(type(module).__dataclass_fields__)
    check_train_argument(module.__call__, type(module).__name__, train_argument, attributes=fields)
    negated = train_argument in NEGATED

    def arguments(train: bool) -> dict[str, Any]:
        return {train_argument: train != negated} if train_argument else {}

    def init(key, batch):
        first, *others = jax.random.split(key, 1 + len(rngs))
        made = module.init({"params": first, **dict(zip(rngs, others, strict=True))}, batch["x"], **arguments(False))
        return Variables(made["params"], {name: value for name, value in made.items() if name != "params"})

    def run(variables, batch, key, train):
        collections = {"params": variables.params, **variables.state}
        keys = {} if key is None else {name: jax.random.fold_in(key, i) for i, name in enumerate(rngs)}
        if not (train and variables.state):
            return module.apply(collections, batch["x"], rngs=keys, **arguments(train)), variables.state
        outputs, state = module.apply(
            collections, batch["x"], rngs=keys, mutable=list(variables.state), **arguments(train)
        )
        return outputs, dict(state)

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        if multiply is None:
            return run(variables, batch, key, train)
        with layer_interceptor(multiply):
            return run(variables, batch, key, train)

    return Model(init, apply, loss, metrics)
