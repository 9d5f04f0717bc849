"""Accuracy and loss of a model on held-out rows, with every view of the model side by side."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.simulation.fit import Fit
from fedjax8.types import Execution, Model, Partial, Variables

BATCH_SIZE = 250


def evaluation(
    model: Model, columns: Mapping[str, np.ndarray], execution: Execution, *, batch_size: int = BATCH_SIZE
) -> Callable[[Variables], dict[str, float]]:
    """`evaluate(variables) -> metrics` over all rows of `columns` (leaves `[N, ...]`).

    The model's own `apply` gives `test_loss` and one `test_<name>` per metric; a view called v gives `v_test_loss` and
    so on; what `model.report` says of the parameters stands beside them. Batches are spread over devices by
    `execution`; the last ones are masked.
    """
    num_rows = len(next(iter(columns.values())))
    if num_rows == 0:
        raise ValueError("evaluation needs at least one row")
    lanes = execution.num_shards * execution.chunk
    batch_size = min(batch_size, math.ceil(num_rows / lanes))
    num_batches = math.ceil(num_rows / (batch_size * lanes)) * lanes
    starts = np.arange(num_batches, dtype=np.int32) * batch_size
    own = starts.reshape(execution.num_shards, -1)[list(execution.shards)].reshape(-1)
    placed = execution.place({name: np.asarray(c) for name, c in columns.items()})
    runs = {"": model.apply} | {f"{name}_": view for name, view in model.views.items()}

    def one_batch(shared, start):
        variables, columns = shared
        rows = start + jnp.arange(batch_size)
        mask = (rows < num_rows).astype(jnp.float32)
        batch = {name: c[jnp.minimum(rows, num_rows - 1)] for name, c in columns.items()} | {"mask": mask}
        sums = {}
        for prefix, apply in runs.items():
            outputs, _ = apply(variables, batch)
            values = {"loss": model.loss(outputs, batch), **model.metrics(outputs, batch)}
            sums |= {f"{prefix}test_{name}": jnp.sum(v * mask) for name, v in values.items()}
        return Partial(sums), ()

    run = execution.compile(lambda shared, starts: execution.map_reduce(one_batch, shared, starts))

    def evaluate(variables: Variables) -> dict[str, float]:
        totals, _ = run((variables, placed), own)
        reported = {name: float(value) for name, value in jax.device_get(model.report(variables.params)).items()}
        return {name: float(total) / num_rows for name, total in totals.sum.items()} | reported

    return evaluate


class Evaluated:
    """Evaluation, compiled for the columns that it was last called with."""

    def __init__(self, model: Model, execution: Execution, fit: Fit):
        self._model, self._execution, self._fit = model, execution, fit
        self._columns: Mapping[str, np.ndarray] | None = None

    def evaluate(self, columns: Mapping[str, np.ndarray], variables: Variables) -> dict[str, float]:
        """Metrics of the variables on columns `[N, ...]`."""
        if self._columns is not columns:
            self._fit.check_other(columns, "the rows to evaluate on")
            self._columns, self._run = columns, evaluation(self._model, columns, self._execution)
        return self._run(variables)
