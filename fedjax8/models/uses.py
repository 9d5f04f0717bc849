"""Uses of a row's numbers by a model, read off its traced program: looked up, or multiplied unscaled.

A column `x` of integers is followed through the program of `apply`, by the operations that only move numbers about:

    gather from a table of V rows     which places of a row are looked up there: their values must lie in 0 .. V - 1
    a product or a convolution        reached by the integers as floats that no constant was multiplied with or taken
                                      from: the model sees them unscaled

Results of other operations are not followed, so a model that changes its symbols before it looks them up, or scales
its rows itself, is taken at its word.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import numpy as np

MOVES = (
    "reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "slice", "split", "rev", "copy", "copy_p",
    "convert_element_type", "stack", "unstack", "tile",
)  # fmt: skip
"""Operations after which every number still is one of the row's."""
KEEPS_SCALE = (
    "mul", "div", "max", "min", "clamp", "round", "floor", "abs", "select_n", "pad", "concatenate", "dynamic_slice",
    "gather", "conv_general_dilated_patches", "custom_jvp_call", "custom_vjp_call", "reduce_precision",
    "optimization_barrier", *MOVES,
)  # fmt: skip
"""Operations after which floats are as large as before, or rescaled by learned factors (quantization)."""
PRODUCTS = ("dot_general", "conv_general_dilated")


class Table(NamedTuple):
    """A table that numbers of a row are looked up in."""

    size: int
    """Its rows, V."""
    places: tuple[int, ...]
    """Of a row's numbers, counted as they lie in memory, those that are looked up there."""


class Uses(NamedTuple):
    """Uses of integer rows by a model."""

    tables: tuple[Table, ...]
    unscaled: bool
    """Whether a product sees them as they are."""


class _Seen(NamedTuple):
    """Facts about one value of the program."""

    places: np.ndarray | None = None
    """int `[shape of the value]`: which number of the row each is."""
    unscaled: bool = False
    """Floats that still have the size of the row's integers."""
    constant: bool = False


_UNKNOWN = _Seen()


def uses(run: Callable[[Any, Any], Any], variables: Any, batch: dict[str, Any]) -> Uses:
    """Uses of the integer column `x` of a batch by `run(variables, batch)`; arguments may be
    `jax.ShapeDtypeStruct`s."""
    program = jax.make_jaxpr(run)(variables, batch)
    flat = jax.tree.leaves((variables, batch))
    x = next(i for i, leaf in enumerate(flat) if leaf is batch["x"])
    shape = batch["x"].shape
    places = np.broadcast_to(np.arange(int(np.prod(shape[1:])), dtype=np.int32).reshape(shape[1:]), shape)
    found: list[Table] = []
    unscaled: list[bool] = []
    given = [_Seen(places) if i == x else _UNKNOWN for i in range(len(flat))]
    _follow(program.jaxpr, [_Seen(constant=True)] * len(program.jaxpr.constvars), given, found, unscaled)
    return Uses(tuple(dict.fromkeys(found)), bool(unscaled))


def _follow(
    jaxpr: Any, constants: Sequence[_Seen], given: Sequence[_Seen], found: list[Table], unscaled: list[bool]
) -> list[_Seen]:
    """Facts about a program's results; tables and unscaled products on the way are added to the lists."""
    known: dict[Any, _Seen] = dict(zip(jaxpr.constvars, constants, strict=True))
    known |= zip(jaxpr.invars, given, strict=True)
    of = lambda atom: _Seen(constant=True) if isinstance(atom, jex.Literal) else known.get(atom, _UNKNOWN)
    for eqn in jaxpr.eqns:
        inputs = [of(atom) for atom in eqn.invars]
        if any(seen is not _UNKNOWN for seen in inputs):
            known |= zip(eqn.outvars, _after(eqn, inputs, found, unscaled), strict=True)
    return [of(atom) for atom in jaxpr.outvars]


def _after(eqn: Any, inputs: list[_Seen], found: list[Table], unscaled: list[bool]) -> list[_Seen]:
    name, nothing = eqn.primitive.name, [_UNKNOWN] * len(eqn.outvars)
    inner = next(_programs(eqn.params), None)
    if inner is not None:
        if len(inner.jaxpr.invars) != len(inputs):
            return nothing
        if name in ("scan", "while"):  # inside a loop values have other shapes, or change from turn to turn
            inputs = [seen._replace(places=None) for seen in inputs]
        constants = [_Seen(constant=True)] * len(inner.jaxpr.constvars)
        made = _follow(inner.jaxpr, constants, inputs, found, unscaled)
        return made if len(made) == len(eqn.outvars) else nothing
    if all(seen.constant for seen in inputs):
        return [_Seen(constant=True)] * len(eqn.outvars)
    if name in PRODUCTS and any(seen.unscaled for seen in inputs):
        unscaled.append(True)
    if name == "gather" and inputs[1].places is not None and "CLIP" not in str(eqn.params.get("mode")):
        (axis, *others) = eqn.params["dimension_numbers"].start_index_map
        if not others:
            found.append(Table(eqn.invars[0].aval.shape[axis], tuple(np.unique(inputs[1].places).tolist())))
        return nothing
    if name == "select_n":  # negative numbers count from a table's end: lt, add, select
        moved = next((seen.places for seen in inputs[1:] if seen.places is not None), None)
    else:
        moved = inputs[0].places if name in MOVES and len(inputs) == 1 else None
    kinds = [getattr(v.aval.dtype, "kind", "") for v in eqn.outvars]
    floats = all(np.issubdtype(v.aval.dtype, np.floating) or v.aval.dtype.itemsize == 1 for v in eqn.outvars)
    if moved is not None and name == "convert_element_type" and kinds != ["i"] and kinds != ["u"]:
        return [_Seen(unscaled=floats)]
    if moved is not None:
        return [_Seen(places) for places in _move(eqn, moved)]
    rescaled = name in ("mul", "div") and any(seen.constant for seen in inputs)
    if any(seen.unscaled for seen in inputs) and name in KEEPS_SCALE and not rescaled:
        return [_Seen(unscaled=True)] * len(eqn.outvars)
    return nothing


def _move(eqn: Any, places: np.ndarray) -> list[np.ndarray]:
    """The operation, done to the places."""
    if eqn.primitive.name in ("convert_element_type", "copy", "copy_p", "select_n"):
        return [places] * len(eqn.outvars)
    with jax.ensure_compile_time_eval():
        made = eqn.primitive.bind(jax.numpy.asarray(places), **eqn.params)
    return [np.asarray(x) for x in (made if eqn.primitive.multiple_results else [made])]


def _programs(params: dict[str, Any]) -> Iterator[Any]:
    """Closed programs among an operation's parameters."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, jex.ClosedJaxpr):
                yield part
            elif isinstance(part, jex.Jaxpr):
                yield jex.ClosedJaxpr(part, ())
