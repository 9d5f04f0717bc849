"""Arguments and JSON files from the user, checked against annotations and forms.

@checked
def local_training(model: Model, optimizer: optax.GradientTransformation, plan: BatchPlan, ...): ...

local_training(models.mlp, ...)      UserError: local_training: model must be a Model, but is the function mlp; call
                                     it: mlp(...)
"""

import contextlib
import functools
import inspect
import json
import numbers
import os
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from fedjax8.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")
MOST_JSON_BYTES = 1 << 28
"""Most bytes of a JSON file; those of this package are far smaller."""
_ABSENT = object()
MOST_DEPTH = 64
"""Deepest nesting of brackets in such a file."""
INSTEAD = {
    ("Model", "flax", "linen"): "models.from_linen(module) makes a model of it",
    ("Model", "flax", "nnx"): "models.from_nnx(lambda rngs: ...) makes a model of its constructor",
    ("FederatedData", "Dataset", ""): "data.federate(dataset, data.iid(), num_clients=10) splits it over clients",
    ("LocalTraining", "Model", ""): "local_training(model, optimizer, plan) trains it on a client",
    ("Algorithm", "LocalTraining", ""): "algorithms.fedavg(local) makes an algorithm of it",
    ("Dataset", "FederatedData", ""): "it is split over clients already",
    ("BatchPlan", "int", ""): "try data.batch_plan(batch_size, epochs=1)",
    ("GradientTransformation", "float", ""): "try optax.sgd(learning_rate)",
    ("Codec", "str", ""): "pass the object, such as codecs.fp8()",
    ("Algorithm", "str", ""): "pass the object, such as algorithms.fedavg(local)",
    ("Model", "str", ""): "pass the object, such as models.mlp()",
}
"""Advice, by the wanted type and the type, or module, of the given value."""


def checked(f: Callable[P, T]) -> Callable[P, T]:
    """`f`, which first raises UserError for an argument that cannot be of its annotated type."""
    hints: dict[str, Any] = {}
    signature = inspect.signature(f)

    @functools.wraps(f)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if not hints:
            hints.update(typing.get_type_hints(f))
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise UserError(f"{f.__name__}: {error}; it takes {', '.join(signature.parameters)}") from error
        misfits = []
        for name, value in given.items():
            kind = signature.parameters[name].kind
            if name in hints and kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD):
                misfits += [(name, value)] * (not fits(value, hints[name], objects=True))
        if not misfits:
            return f(*args, **kwargs)
        if all(value is None or not _takes_object(hints[name]) for name, value in misfits):
            # The checks of `f` itself on numbers, names and missing arguments are more to the point.
            with contextlib.suppress(AttributeError, TypeError):
                f(*args, **kwargs)
        name, value = misfits[0]
        raise refused(f"{f.__name__}: {name}", value, hints[name])

    return call


def refused(where: str, value: Any, hint: Any) -> UserError:
    """The error for a value that is not of the annotated type, with what to try."""
    return UserError(f"{where} must be {_shown(hint)}, but is {_described(value)}{_advice(value, hint)}")


def fits(value: Any, hint: Any, *, objects: bool = False) -> bool:
    """Whether a value fits an annotation; one that is not understood takes everything.

    With `objects` classes and callables are understood too: a component in a config is no object yet.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg, objects=objects) for arg in args)
    if objects and hasattr(value, "__array__") and (hint is float or origin in (tuple, list, Sequence)):
        return bool(np.ndim(value)) != (hint is float)  # an array stands for a number, or for a list of them
    if hint in (float, int):
        whole, number = (numbers.Integral, int), (numbers.Real, float)
        return isinstance(value, whole if hint is int else (*number, *whole)) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    if hint is type(None):
        return value is None
    if origin in (tuple, list, Sequence):
        inner = [a for a in args if a is not Ellipsis]
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and args and Ellipsis not in args:
            return len(value) == len(inner) and all(
                fits(v, a, objects=objects) for v, a in zip(value, inner, strict=True)
            )
        return all(fits(v, inner[0], objects=objects) for v in value) if len(inner) == 1 else True
    if not objects or hint is Any:
        return True
    if Callable in (origin, hint):
        return callable(value)
    return isinstance(value, hint) if _is_record(hint) else True


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where it is damaged, or too large to be one of this package.

    Raises OSError where there is none, or it cannot be read.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > MOST_JSON_BYTES:
            return None
        text = file.read()
    found = parse(text.decode("utf-8", "replace"))
    return found if isinstance(found, dict) and _shallow(found) else None


def has_form(value: Any, pattern: Any) -> bool:
    """Whether a JSON value has a form: a type, `[form]` for a list of them, `{name: form}` with at least these names
    but for those that end in `?`, `{str: form}` for any names, or a tuple of forms for one of them; None for null.
    Numbers must be finite, and of 64 bits if they are whole."""
    if isinstance(pattern, tuple):
        return any(has_form(value, form) for form in pattern)
    if isinstance(pattern, list):
        return isinstance(value, list) and all(has_form(part, pattern[0]) for part in value)
    if isinstance(pattern, dict) and str in pattern:
        return isinstance(value, dict) and all(has_form(part, pattern[str]) for part in value.values())
    if isinstance(pattern, dict):
        found = (
            {name: value.get(name.removesuffix("?"), _ABSENT) for name in pattern} if isinstance(value, dict) else {}
        )
        return len(found) == len(pattern) and all(
            name.endswith("?") if part is _ABSENT else has_form(part, pattern[name]) for name, part in found.items()
        )
    if isinstance(value, int | float) and not -(2.0**63) <= value < 2.0**63:
        return False
    return value is None if pattern is None else fits(value, pattern)


def parse(text: str) -> Any:
    """The value of a text in JSON; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # the latter for brackets in brackets
        return None


def _is_record(hint: Any) -> bool:
    """Whether an annotation is a tuple with names or a data class: nothing else behaves like one."""
    return inspect.isclass(hint) and (hasattr(hint, "_fields") or hasattr(hint, "__dataclass_fields__"))


def _takes_object(hint: Any) -> bool:
    """Whether an annotation names a record or a function, alone or as an alternative."""
    kinds = (hint, *typing.get_args(hint)) if isinstance(hint, types.UnionType) else (hint,)
    return any(_is_record(kind) or Callable in (kind, typing.get_origin(kind)) for kind in kinds)


def _shallow(value: Any) -> bool:
    """Whether brackets lie at most `MOST_DEPTH` deep, so that functions may call themselves for each."""
    level = [value]
    for _ in range(MOST_DEPTH):
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        if not inner:
            return True
        level = [part for parts in inner for part in parts]
    return False


def _shown(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_shown(arg) for arg in args)
    if hint is type(None):
        return "None"
    if Callable in (origin, hint):
        return "a function"
    if not inspect.isclass(hint):
        return str(hint).replace("typing.", "").replace("collections.abc.", "")
    return f"{'an' if hint.__name__[0] in 'AEIOUaeiou' else 'a'} {hint.__name__}"


def _described(value: Any) -> str:
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', '')}"
    if isinstance(value, str | int | float) or value is None:
        return repr(value)
    return f"a {type(value).__name__}"


def _advice(value: Any, hint: Any) -> str:
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"; call it: {getattr(value, '__name__', 'f')}(...)"
    wanted = {getattr(arg, "__name__", "") for arg in (hint, *typing.get_args(hint))}
    kind = type(value)
    home = {name for base in kind.__mro__ for name in base.__module__.split(".")}
    for (name, given, part), advice in INSTEAD.items():
        if name in wanted and (kind.__name__ == given or (part and {given, part} <= home)):
            return f"; {advice}"
    if isinstance(value, float) and value.is_integer() and "int" in wanted:
        return f"; try {int(value)}"
    return ""
