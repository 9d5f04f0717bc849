"""Modules of a flax linen model, recorded and changed from outside by their path."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from fedjax8 import paths
from fedjax8.errors import UserError
from fedjax8.models.linen import intercepted
from fedjax8.types import Batch, Model, Variables

Call = Callable[..., Any]
Change = Callable[[str, Call, tuple, dict[str, Any]], Any]
"""`(module path, its __call__, args, kwargs) -> the result in its place`."""


def changed(at: Sequence[str], change: Change) -> contextlib.AbstractContextManager[None]:
    """Context in which `change` stands around the `__call__` of linen modules whose path a pattern of `at` matches,
    those inside such a module excepted."""
    inside: list[str] = []

    def intercept(next_call, args, kwargs, context):
        path = "/".join(context.module.path)
        if context.method_name != "__call__" or inside or not path or not paths.matches(path, at):
            return next_call(*args, **kwargs)
        inside.append(path)
        try:
            return change(path, next_call, args, kwargs)
        finally:
            inside.pop()

    return intercepted(intercept)


class Seen(NamedTuple):
    """Shapes of a module's first argument and of its result; None where it is no single array."""

    x: tuple[int, ...] | None
    y: tuple[int, ...] | None


def modules_at(at: Sequence[str], model: Model, variables: Variables, batch: Batch, what: str) -> dict[str, Seen]:
    """The modules that `changed` stands around, by path, in the order in which they begin. Traced, not run.

    Raises UserError if there are none, or a pattern matches none (names the nearest path).
    """
    found: dict[str, Seen] = {}

    def shape(value: Any) -> tuple[int, ...] | None:
        return value.shape if isinstance(value, jax.Array) else None

    def record(next_call, args, kwargs, context):
        path = "/".join(context.module.path)
        if context.method_name != "__call__" or not path:
            return next_call(*args, **kwargs)
        found.setdefault(path, Seen(None, None))
        y = next_call(*args, **kwargs)
        found[path] = Seen(shape(args[0]) if args else None, shape(y))
        return y

    def run(variables, batch):
        with intercepted(record):
            return model.apply(variables, batch)[0]

    jax.eval_shape(run, variables, batch)
    if not found:
        raise UserError(f"{what}: the model has no modules of flax linen that could be named by a path")
    return {path: found[path] for path in paths.outermost(paths.matching(at, list(found), what))}
