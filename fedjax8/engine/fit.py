"""Checks that a model and rows go together, where rows enter a run and where they are evaluated.

The model is traced, not run. The trace (the number of outputs, which numbers of a row are looked up in which table,
whether raw integers are multiplied) is held against the rows: whole columns in memory when a run is made, those
on disk block by block as they are read.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax8 import trees
from fedjax8.data.checks import (
    NO_TARGET,
    check_classes,
    check_columns,
    check_finite,
    check_marks,
    common_length,
    extremes,
)
from fedjax8.errors import UserError
from fedjax8.keys import random_key
from fedjax8.models.uses import Uses, uses
from fedjax8.types import BINARY, CLASSES, MARKS, VALUES, Model

ROWS = 2
"""Of the batch that is traced."""


class Fit(NamedTuple):
    """A model beside rows of certain shapes and dtypes."""

    outputs: tuple[int, ...]
    """Shape of the outputs of one row."""
    num_classes: int | None
    """Classes that the loss takes, where labels are class numbers; else None."""
    marks: bool
    """Whether targets are a 0 or 1 for each label."""
    uses: Uses
    columns: Mapping[str, tuple[np.dtype, tuple[int, ...]]]
    """Dtype and row shape by name."""

    def check(self, columns: Mapping[str, np.ndarray], where: str) -> None:
        """Raises UserError naming the first value of these rows that the model cannot take."""
        check_finite({name: columns[name] for name in ("x", "y") if name in columns}, where)
        if self.num_classes is not None:
            labels = columns["y"]
            check_classes(labels, self.num_classes, f"{where}:", 0 if labels.ndim == 1 else NO_TARGET)
        if self.marks:
            check_marks(columns["y"], where)
        for table in self.uses.tables:
            x = columns["x"].reshape(len(columns["x"]), -1)
            low, high = extremes(x if len(table.places) == x.shape[1] else x[:, list(table.places)])
            if len(x) and (low < 0 or high >= table.size):
                raise UserError(
                    f"{where}: tokens in x run from {low} to {high}, but the model looks them up in a table of "
                    f"{table.size}, which allows 0 to {table.size - 1}; give it a larger "
                    "vocabulary, or number tokens anew"
                )

    def on_entry(
        self, columns: Mapping[str, np.ndarray], where: str
    ) -> Callable[[Mapping[str, np.ndarray]], None] | None:
        """None after a check of columns in memory; for columns on disk, the check to call with rows that are read."""
        if any(isinstance(column, np.memmap) for column in columns.values()):
            return lambda read: self.check(read, where)
        self.check(columns, where)
        return None

    def check_other(self, columns: Mapping[str, np.ndarray], where: str) -> None:
        """As `check`, of columns that need not be like those that the model was traced with."""
        check_columns(columns, where)
        if not common_length(columns, where, numbered=False):
            raise UserError(f"{where} have no rows; at least one is needed")
        for name, (dtype, shape) in self.columns.items():
            if name not in columns:
                raise UserError(f"{where} have columns {', '.join(columns)}; those trained on have {name!r} too")
            given = columns[name]
            if given.shape[1:] != shape or jax.dtypes.canonicalize_dtype(given.dtype) != dtype:
                raise UserError(
                    f"{where}: {name!r} is {given.dtype} with rows of shape {given.shape[1:]}, but was {dtype} with "
                    f"rows of shape {shape} in training; make them alike"
                )
        self.check(columns, where)


_last: list[tuple[Model, Any, Fit]] = []
"""The last trace: a config's builder asks first, to name its fields, and a run then once more."""


def fit_of(model: Model, columns: Mapping[str, np.ndarray], what: str = "the model", rows: str = "the data") -> Fit:
    """The fit of model and `columns`; UserError where they do not go together. Values are not read.

    Args:
      model: to be traced, not run.
      columns: name -> `[N, ...]`.
      what: the model's name in messages.
      rows: that of the columns.
    """
    like = {name: (jax.dtypes.canonicalize_dtype(c.dtype), c.shape[1:]) for name, c in columns.items()}
    if not (_last and _last[0][0] is model and _last[0][1] == like):
        _last[:] = [(model, like, _traced(model, like, what, rows))]
    return _last[0][2]


def _traced(model: Model, like: Mapping[str, tuple[np.dtype, tuple[int, ...]]], what: str, rows: str) -> Fit:
    batch = {name: jax.ShapeDtypeStruct((ROWS, *shape), dtype) for name, (dtype, shape) in like.items()}
    batch["mask"] = jax.ShapeDtypeStruct((ROWS,), np.float32)
    shape = like["x"][1] if "x" in like else {name: shape for name, (_, shape) in like.items()}
    misfit = f"{what} does not fit rows of shape {shape} of {rows}"
    try:
        key = random_key(0)
        variables = jax.eval_shape(model.init, key, batch)
        outputs, _ = jax.eval_shape(lambda v, b: model.apply(v, b), variables, batch)
        jax.eval_shape(lambda v, b: model.apply(v, b, key=key, train=True), variables, batch)
    except UserError:  # names the mistake, as of a file that does not fit
        raise
    except (TypeError, ValueError, ZeroDivisionError, KeyError, AttributeError) as error:
        raise UserError(f"{misfit}: {' '.join(str(error).split())[:200]}") from error
    leaves = trees.named_leaves(variables.params) | trees.named_leaves(variables.frozen)
    empty = [name for name, x in leaves.items() if 0 in x.shape]
    if empty:
        raise UserError(f"{misfit}: nothing is left at {empty[0]}")
    num_classes = None
    if model.targets:
        num_classes = _check_outputs(model.targets, outputs, batch.get("y"), what, rows)
    losses = jax.eval_shape(model.loss, outputs, batch)
    if losses.shape != (ROWS,):
        raise UserError(f"the loss of {what} has shape {losses.shape} for {ROWS} rows; it must be one number a row")
    used = Uses((), False)
    if "x" in like and np.issubdtype(like["x"][0], np.integer):
        plain = model.views.get("float32", model.apply)
        used = uses(lambda v, b: plain(v, b)[0], variables, batch)
        if used.unscaled:
            _refuse_unscaled(like["x"][0], what, rows)
    return Fit(getattr(outputs, "shape", ())[1:], num_classes, model.targets == MARKS, used, dict(like))


def _check_outputs(targets: str, outputs: Any, labels: Any, what: str, rows: str) -> int | None:
    """The number of classes, if targets of this kind have one."""
    if labels is None:
        raise UserError(f"{rows} have no column 'y' of labels, which the loss of {what} needs")
    if targets == VALUES and not np.issubdtype(labels.dtype, np.floating):
        raise UserError(
            f"targets 'y' of {rows} are {labels.dtype}, but the loss of {what} takes numbers; try y.astype(np.float32)"
        )
    if targets != VALUES and not np.issubdtype(labels.dtype, np.integer):
        kind = "a 0 or 1 for each label" if targets == MARKS else "class numbers"
        raise UserError(
            f"labels 'y' of {rows} are {labels.dtype}, but the loss of {what} takes {kind}; try "
            "y.astype(np.int32), or give the model another loss"
        )
    if targets != CLASSES:
        single = outputs.shape[0:1] == labels.shape and outputs.shape[1:] in ((), (1,))
        if not (single if targets == BINARY or len(labels.shape) == 1 else outputs.shape == labels.shape):
            raise UserError(
                f"{what} gives outputs of shape {outputs.shape[1:]} a row, but {rows} has targets of shape "
                f"{labels.shape[1:]} a row; its loss needs one output for each"
            )
        return 2 if targets == BINARY else None
    if outputs.shape[:-1] != labels.shape:
        given = "a label a row" if len(labels.shape) == 1 else f"{labels.shape[1]} labels a row"
        advice = "; try y[:, 0]" if labels.shape[1:] == (1,) else " (try char_lstm)" if len(labels.shape) == 2 else ""
        raise UserError(f"{what} gives outputs of shape {outputs.shape[1:]} a row, but {rows} has {given}{advice}")
    return int(outputs.shape[-1])


def _refuse_unscaled(dtype: np.dtype, what: str, rows: str) -> None:
    if dtype == np.uint8:
        raise UserError(
            f"{what} multiplies the uint8 values of x in {rows} as they are, 0 to 255; scale them by "
            "adapters.inputs(model, dataset.mean, dataset.std)"
        )
    raise UserError(
        f"{what} multiplies the {dtype} values of x in {rows}, but integers other than uint8 are symbols, which "
        "are not scaled; store pixels as uint8, and features as float32"
    )
