"""The types of tasks and metrics, and what they share."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.directions import LOWER, Measures
from fedjax8.display import Facts, shows
from fedjax8.errors import UserError
from fedjax8.types import BINARY, CLASSES, MARKS, VALUES, Array, Batch, Model, SetMetric
from fedjax8.types.models import takes, unchanged

LOSS = "loss"
DESCRIBED = {
    CLASSES: "class numbers, whole numbers from 0",
    BINARY: "0 or 1, one a row",
    MARKS: "a 0 or 1 for each label, [N, L]",
    VALUES: "numbers, float32 [N] or [N, K]",
}
"""Kinds of targets in words."""


class Metric(NamedTuple):
    """A metric of outputs and targets: a mean over rows, or a function of the whole set."""

    name: str
    direction: str
    """HIGHER or LOWER, whichever is better."""
    kinds: tuple[str, ...]
    """Kinds of targets, of `types.TARGETS`, that it is defined for."""
    of_row: Callable[[Array, Array], Array] | None = None
    """`(outputs [B, ...], targets [B, ...]) -> float32 [B]`, averaged over rows; also logged of training. Of yes or no
    it sees outputs `[B, 2]`, as of two classes."""
    of_set: SetMetric | None = None
    """In its place where the metric is no such mean; at evaluations only."""
    admits: Callable[[np.ndarray], None] = lambda targets: None
    """Raises UserError for targets `[N, ...]` of a set on which the metric has no value."""


@shows
class Task(NamedTuple):
    """What a model is trained for: a loss, metrics, and the kind of targets."""

    name: str
    targets: str
    """One of `types.TARGETS`."""
    loss: Callable[[Array, Batch], Array]
    """`(outputs, batch) -> float32 [B]`."""
    metrics: tuple[Metric, ...]
    """The first is the main one, by which runs are compared and callbacks decide."""

    def _facts(self) -> Facts:
        return {"": self.name, "targets": self.targets, "metrics": ", ".join(metric.name for metric in self.metrics)}

    @property
    def main(self) -> str:
        """Name of the main metric."""
        return self.metrics[0].name

    @property
    def directions(self) -> dict[str, str]:
        """HIGHER or LOWER of the loss and of each metric."""
        return {LOSS: LOWER} | {metric.name: metric.direction for metric in self.metrics}

    @property
    def measures(self) -> Measures:
        """How a run of it is judged."""
        return Measures(self.main, self.directions)

    @property
    def of_clients(self) -> str:
        """The metric of a client's own rows: the main one if it is a mean over rows, else the loss."""
        return self.main if self.metrics[0].of_row is not None else LOSS

    def on(self, model: Model) -> Model:
        """The model with this task's loss and metrics.

        Example:
          >>> from flax import linen as nn
          >>> from fedjax8 import models, tasks
          >>> model = tasks.regression().on(models.from_linen(nn.Dense(1)))
        """
        rows = {m.name: m.of_row for m in self.metrics if m.of_row is not None}
        sets = {m.name: m.of_set for m in self.metrics if m.of_set is not None}

        seen = two_classes if self.targets == BINARY else unchanged

        def metrics(outputs: Array, batch: Batch) -> dict[str, Array]:
            return {name: of_row(seen(outputs), batch["y"]) for name, of_row in rows.items()}

        def on_seen(metric: SetMetric) -> SetMetric:
            return metric._replace(state=lambda outputs, y, mask: metric.state(seen(outputs), y, mask))

        sets = {name: on_seen(metric) for name, metric in sets.items()}
        return model._replace(loss=self.loss, metrics=metrics, sets=sets)

    def num_outputs(self, dataset: Dataset) -> int:
        """Outputs that a model of this data set needs; UserError where the targets are of another kind."""
        y = dataset.train["y"]
        if self.targets in (CLASSES, BINARY) and dataset.num_classes == 1:
            raise UserError(
                f"config.task: all targets of {dataset.name} are one class, so that any model is right; give rows of "
                "several classes, or their number as --config.data.num_classes where the source takes it"
            )
        if self.targets == CLASSES and dataset.num_classes is not None:
            return dataset.num_classes
        if self.targets == BINARY and dataset.num_classes is not None and y.ndim == 1:
            if dataset.num_classes > 2:
                raise self.misfit(dataset, f"{dataset.num_classes} classes", "classification")
            return 1
        if self.targets == MARKS and y.ndim == 2 and dataset.num_classes is None and y.dtype.kind in "iub":
            return y.shape[1]
        if self.targets == VALUES and y.dtype.kind == "f":
            return 1 if y.ndim == 1 else y.shape[1]
        found = f"{y.dtype} targets with rows of shape {y.shape[1:]}"
        if dataset.num_classes is not None:
            raise self.misfit(dataset, f"class numbers up to {dataset.num_classes - 1}", "classification")
        raise self.misfit(dataset, found, "regression" if y.dtype.kind == "f" else "multilabel")

    def misfit(self, dataset: Dataset, found: str, other: str) -> UserError:
        """The error for a data set with targets of another kind."""
        return UserError(
            f"config.task: {self.name} takes targets that are {DESCRIBED[self.targets]}, but {dataset.name} has "
            f"{found}; set --config.task.name={other}, or give other targets"
        )

    def check_rows(self, columns: Mapping[str, np.ndarray], where: str) -> None:
        """Raises UserError where a metric has no value on these rows `[N, ...]`."""
        for metric in self.metrics:
            try:
                metric.admits(np.asarray(columns["y"]))
            except UserError as error:
                raise UserError(f"config.task.metrics: {metric.name} of {where}: {error}") from error


def task_of(
    name: str,
    targets: str,
    loss: Callable[[Array, Batch], Array],
    metrics: Sequence[Metric],
    usual: Sequence[Metric],
) -> Task:
    """The task with these metrics, or the usual ones if there are none; UserError for those that do not fit it."""
    chosen = tuple(metrics) or tuple(usual)
    for metric in chosen:
        if not isinstance(metric, Metric):
            raise UserError(f"metrics must be objects of tasks.metrics, such as accuracy(); got {metric!r}")
        if (CLASSES if targets == BINARY else targets) not in metric.kinds:
            raise UserError(
                f"{metric.name} is no metric of {name}: it is of targets that are "
                f"{' or '.join(DESCRIBED[kind] for kind in metric.kinds)}"
            )
    names = [metric.name for metric in chosen]
    if len(set(names)) < len(names) or LOSS in names:
        raise UserError(f"metrics need different names other than {LOSS!r}; got {', '.join(names)}")
    return Task(name, targets, takes(targets)(loss), chosen)


def two_classes(outputs: Array) -> Array:
    """Logits `[B, 2]` of 0 and 1 by the one output `[B]` or `[B, 1]` of yes or no."""
    logits = outputs.reshape(-1, 1)
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=1)


def side_by_side(outputs: Array, targets: Array) -> tuple[Array, Array]:
    """Both as float32 `[B, K]`; outputs `[B]` or `[B, 1]` and targets `[B]` have K = 1."""
    flat = lambda x: jnp.asarray(x, jnp.float32).reshape(x.shape[0], -1)
    return flat(outputs), flat(targets)


def of_targets(mask: Array, targets: Array) -> Array:
    """bool: whether a class number of `targets` `[B]` or `[B, T]`, flattened, is there and in no row of padding."""
    rows = jnp.broadcast_to(mask.reshape(-1, *[1] * (targets.ndim - 1)), targets.shape)
    return ((rows > 0) & (targets >= 0)).reshape(-1)
