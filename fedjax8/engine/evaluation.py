"""Accuracy and loss of a model on held-out rows, with every view of the model side by side."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.engine.fit import Fit
from fedjax8.errors import UserError
from fedjax8.executors import groups, padded
from fedjax8.types import Executor, Model, Partial, Program, PyTree, Variables

BATCH_SIZE = 250
BYTES_AT_ONCE = 1 << 30
"""Most bytes of the largest intermediate array of a forward pass on one device; a pass holds a few such arrays."""


def evaluation(
    model: Model,
    columns: Mapping[str, np.ndarray],
    executor: Executor,
    *,
    batch_size: int = BATCH_SIZE,
    bytes_at_once: int = BYTES_AT_ONCE,
    part: str = "test",
) -> Callable[[Variables], dict[str, float]]:
    """`evaluate(variables) -> metrics` over all rows of `columns` (leaves `[N, ...]`).

    The model's own `apply` gives `test_loss` and one `test_<name>` per metric (by the name of another `part` if given);
    a view called v gives `v_test_loss` and so on; metrics of the whole set and the values of `model.report` are among
    them.
    Batches are spread over devices by `executor`; the last ones are masked. A device works on no more rows at once than
    there are for it, and on no more than `bytes_at_once` allows, whatever the executor's chunk. Raises UserError where
    there are no rows.
    """
    num_rows = len(next(iter(columns.values()), ()))
    if num_rows == 0:
        raise UserError("evaluation needs at least one row, and was given none: pass held-out rows")
    placed = executor.place({name: np.asarray(c) for name, c in columns.items()})
    runs = {"": model.apply} | {f"{name}_": view for name, view in model.views.items()}
    rows_of_shard = math.ceil(num_rows / executor.num_shards)
    most = min(batch_size, rows_of_shard)
    sets = {f"{prefix}{part}_{name}": metric for prefix in runs for name, metric in model.sets.items()}

    def sums_of(shared: PyTree, rows: jax.Array) -> tuple[PyTree, PyTree]:
        """Over a batch: sums of the metrics and of states that add up; and the states of each row."""
        variables, columns = shared
        mask = (rows < num_rows).astype(jnp.float32)
        batch = {name: c[jnp.minimum(rows, num_rows - 1)] for name, c in columns.items()} | {"mask": mask}
        sums: dict[str, jax.Array] = {}
        states: dict[str, PyTree] = {}
        for prefix, apply in runs.items():
            outputs, _ = apply(variables, batch)
            values = {"loss": model.loss(outputs, batch), **model.metrics(outputs, batch)}
            sums |= {f"{prefix}{part}_{name}": jnp.sum(v * mask) for name, v in values.items()}
            states |= {f"{prefix}{part}_{n}": m.state(outputs, batch["y"], mask) for n, m in model.sets.items()}
        kept = {name: state for name, state in states.items() if sets[name].rows}
        return (sums, {name: state for name, state in states.items() if name not in kept}), kept

    def program(shared: PyTree) -> tuple[Program, np.ndarray]:
        """The compiled evaluation, and the first row of every batch of this process."""
        of_row = largest_array(sums_of, shared, np.zeros(most, np.int32)) / most
        rows_at_once = max(1, int(bytes_at_once / of_row))
        size = min(most, rows_at_once)
        at_once = min(executor.chunk, max(1, rows_at_once // size))
        per_shard = padded(math.ceil(rows_of_shard / size), at_once)
        starts = np.arange(executor.num_shards * per_shard, dtype=np.int32) * size

        def one_batch(shared, start):
            sums, kept = sums_of(shared, start + jnp.arange(size))
            return Partial(sums), kept

        def run(shared, starts):
            if at_once == executor.chunk:
                return executor.map_reduce(one_batch, shared, starts)
            # The executor by itself would take more at once than fits.
            parts = starts.reshape(groups(per_shard, at_once), -1)
            found, kept = jax.lax.map(lambda part: executor.map_reduce(one_batch, shared, part), parts)
            total = jax.tree.map(lambda x: jnp.sum(x, axis=0), found.sum)
            return Partial(total), jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)

        own = starts.reshape(executor.num_shards, -1)[list(executor.shards)].reshape(-1)
        return executor.compile(run), own

    compiled: list[tuple[Program, np.ndarray]] = []

    def evaluate(variables: Variables) -> dict[str, float]:
        if not compiled:
            compiled.append(program((variables, placed)))
        run, own = compiled[0]
        totals, kept = run((variables, placed), own)
        sums, states = jax.device_get(totals.sum)
        of_rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], jax.device_get(executor.collect(kept)))
        whole = {name: metric.value((of_rows if metric.rows else states)[name]) for name, metric in sets.items()}
        reported = {name: float(value) for name, value in jax.device_get(model.report(variables.params)).items()}
        return {name: float(total) / num_rows for name, total in sums.items()} | whole | reported

    return evaluate


class Evaluated:
    """Evaluation, compiled for the columns that it was last called with."""

    def __init__(self, model: Model, executor: Executor, fit: Fit):
        self._model, self._executor, self._fit = model, executor, fit
        self._columns: Mapping[str, np.ndarray] | None = None

    def evaluate(self, columns: Mapping[str, np.ndarray], variables: Variables) -> dict[str, float]:
        """Metrics of the variables on columns `[N, ...]`."""
        if self._columns is not columns:
            self._fit.check_other(columns, "the rows to evaluate on")
            self._columns, self._run = columns, evaluation(self._model, columns, self._executor)
        return self._run(variables)


def largest_array(f: Callable, *arguments: PyTree) -> int:
    """Bytes of the largest array that `f` computes from such arguments, found by tracing it; at least 1.

    >>> largest_array(lambda a, b: jnp.sum(a @ b), np.ones((2, 3), np.float32), np.ones((3, 5), np.float32))
    40
    """
    return _largest(jax.make_jaxpr(f)(*arguments).jaxpr)


def _largest(program: Any) -> int:
    most = 1
    for equation in program.eqns:
        shaped = [v.aval for v in equation.outvars if hasattr(v.aval, "dtype")]
        most = max([most, *(math.prod(x.shape) * x.dtype.itemsize for x in shaped)])
        values = [v for value in equation.params.values() for v in (value if isinstance(value, tuple) else (value,))]
        inner = [getattr(value, "jaxpr", value) for value in values]
        most = max([most, *(_largest(one) for one in inner if hasattr(one, "eqns"))])
    return most
