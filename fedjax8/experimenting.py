"""From data to curves in one call: a config from Python values, or with objects in place of its components, run."""

import contextlib
import functools
import inspect
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from fedjax8.cli import path_of
from fedjax8.config import LISTS, base_config, component, is_component, load_config
from fedjax8.config_fields import FIELDS
from fedjax8.errors import Mistakes, UserError, mistakes_of
from fedjax8.loading import LoadedRun
from fedjax8.lookup import suggest

if TYPE_CHECKING:
    from fedjax8.tasks import Task

ARRAYS = ("x", "y", "x_test", "y_test", "clients", "clients_test")
"""Names of arrays that stand for a data set: see `data.from_arrays`."""


def experiment(
    data: Any = None,
    model: Any = None,
    *,
    config: str | ConfigDict | None = None,
    workdir: str | Path | None = None,
    data_dir: str | None = None,
    quiet: bool = False,
    **fields: Any,
) -> LoadedRun:
    """A federated run, from data to curves: built, run to its end, and loaded.

    Args:
      data: name of a source, a mapping of its settings with a `name`, a `Dataset`, a tuple `(x, y)` or
        `(x, y, x_test, y_test)` of arrays, or a mapping of such as `data.from_arrays` takes them.
      model: name of a model, a mapping of its settings with a `name`, a flax module, linen or a function that builds an
        nnx one, or a `Model`, whose loss and metrics become those of the task.
      config: to start from: a name or file as of `train --config`, or a ConfigDict; the default digits job if None.
      workdir: the run's folder; a run found there goes on. None: a temporary one, which goes when the result does.
      data_dir: where data sets lie; None for `$FEDJAX8_DATA`.
      quiet: nothing is printed.
      fields: fields of the config: plain values; for a component its name, or a mapping of its settings with a `name`;
        for `client` and other sections a mapping; as `task` also a `Task`, or a mapping whose `metrics` are names or
        `Metric`s.

    Returns:
      The run, as `load` gives it: `run.metrics`, `run.plot()`, `run.evaluate()`, `run.experiment.simulation`.

    Raises:
      UserError: all mistakes in one; nothing has been run or written then.

    Example:
      >>> run = experiment("digits", rounds=2, client={"epochs": 1}, uplink="fp8", quiet=True)
      >>> len(run.metrics)
      2
    """
    from fedjax8.build import build
    from fedjax8.compilation_cache import use_compilation_cache
    from fedjax8.components import GIVEN
    from fedjax8.devices import check_jax, set_up_devices, start_devices
    from fedjax8.introduction import introduction
    from fedjax8.launch import own_models_of, run_of, schedule_of
    from fedjax8.running.runner import run_one

    objects: dict[str, Any] = {}
    with Mistakes() as mistakes:
        task = mistakes.attempt(task_object, fields.get("task"))
        plain_fields = {name: value for name, value in fields.items() if name != "task" or task is None}
        made = mistakes.attempt(config_of, config, plain_fields)
    if task is not None:
        made.task, objects["task"] = component(GIVEN), task
    with Mistakes() as mistakes:
        of_data = functools.partial(data_object, targets=targets_of(made, task))
        for field, given, kind in (("data", data, of_data), ("model", model, model_object)):
            found = mistakes.attempt(given_as, made, field, given, kind)
            objects |= {} if found is None else {field: found}
    check_jax()
    use_compilation_cache()
    set_up_devices(None, made.cohort_size if isinstance(made.cohort_size, int) else None)
    start_devices()
    built = build(made, data_dir, objects=objects)
    own = own_models_of(built)
    path = Path(tempfile.mkdtemp(prefix="fedjax8-")) if workdir is None else path_of(str(workdir))
    run = run_of(built, path, own=own, command="fedjax8.experiment")
    introduce = functools.partial(introduction, built)
    outcome = run_one(run, built.dataset.test, schedule_of(made), introduce, quiet=quiet)
    if own and outcome.summary["finished"]:
        own.write(outcome.state, path)
    found = LoadedRun(path, data_dir, built)
    if workdir is None:
        weakref.finalize(found, shutil.rmtree, path, ignore_errors=True)
    return found


def config_of(config: str | ConfigDict | None, fields: Mapping[str, Any]) -> ConfigDict:
    """The config with these fields set; UserError that names all that cannot be."""
    if isinstance(config, ConfigDict):
        made = ConfigDict(config, convert_dict=False)
    else:
        made = base_config() if config is None else load_config(config)
    with Mistakes() as mistakes:
        for name, value in fields.items():
            mistakes.attempt(set_field, made, name, value)
    return made


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Sets a field of the config, or the fields of a section; UserError for one that is not there."""
    if name not in config:
        allowed = [field for field in config if field not in ("data", "model")]
        raise UserError(f"experiment has no field {name!r}: allowed are {', '.join(allowed)}{suggest(name, allowed)}")
    old = config[name]
    if is_component(old):
        config[name] = as_component(name, value)
    elif isinstance(old, ConfigDict):
        if not isinstance(value, Mapping):
            raise UserError(f"{name} is a section: give a mapping of {', '.join(sorted(old))}; got {value!r}")
        for inner, its in value.items():
            if inner not in old:
                raise UserError(
                    f"{name} has no field {inner!r}: allowed are {', '.join(sorted(old))}{suggest(str(inner), old)}"
                )
            old[inner] = as_component(f"{name}.{inner}", its) if is_component(old[inner]) else plain_as(its, old[inner])
    elif FIELDS[name].package:  # several components
        config[name] = tuple(as_component(f"{name}.{i}", one) for i, one in enumerate(in_a_list(value)))
    else:
        config[name] = plain_as(value, old)


def plain_as(value: Any, old: Any) -> Any:
    """A value of the kind of the old one where nothing is lost; what is wrong with it `build` says."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return tuple(value) if isinstance(old, tuple) and isinstance(value, list) else value


def as_component(where: str, value: Any) -> ConfigDict:
    """A component by name, or by a mapping of its settings with a `name`."""
    if isinstance(value, str):
        return component(value)
    if isinstance(value, Mapping | ConfigDict) and isinstance(value.get("name"), str):
        return component(**{key: as_setting(f"{where}.{key}", inner) for key, inner in value.items()})
    raise UserError(f"{where} is a component: give its name, or a mapping with name and settings; got {value!r}")


def as_setting(where: str, value: Any) -> Any:
    """A component's setting: mappings with a `name`, and names where components are due, become components."""
    if where in LISTS:
        return tuple(as_component(f"{where}.{i}", one) for i, one in enumerate(in_a_list(value)))
    return as_component(where, value) if isinstance(value, Mapping) and "name" in value else value


def in_a_list(value: Any) -> list[Any]:
    """One component, or several, as a list."""
    return [value] if isinstance(value, str | Mapping) else list(value)


def given_as(config: ConfigDict, field: str, value: Any, kind: Any) -> Any:
    """The object that stands in place of a component; None where a name or settings are given, which the config
    takes."""
    if value is None:
        return None
    if isinstance(value, str) or (isinstance(value, Mapping) and "name" in value):
        config[field] = as_component(field, value)
        return None
    from fedjax8.components import GIVEN

    config[field] = component(GIVEN)
    return kind(value)


def task_object(value: Any) -> "Task | None":
    """A task from one, or from a mapping of a task's settings with `Metric`s among its metrics; None for anything else,
    which the config takes. UserError for a metric alone, and for settings that the task does not take."""
    from fedjax8.components import SEAMS, build_component
    from fedjax8.config import check_call
    from fedjax8.tasks import Metric, Task

    if isinstance(value, Task):
        return value
    if isinstance(value, Metric):
        raise UserError(
            f"task is the metric {value.name}: give a task with it, such as "
            '{"name": "classification", "metrics": [it, "accuracy"]}'
        )
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    metrics = value.get("metrics", ())
    metrics = [metrics] if isinstance(metrics, str | Mapping | Metric) else list(metrics)
    if not any(isinstance(metric, Metric) for metric in metrics):
        return None
    with mistakes_of("task"):
        factory = SEAMS["task"].finder(value["name"])
        made = [
            metric
            if isinstance(metric, Metric)
            else build_component(f"task.metrics.{i}", as_component(f"task.metrics.{i}", metric), SEAMS["metrics"])
            for i, metric in enumerate(metrics)
        ]
        settings = {name: its for name, its in value.items() if name not in ("name", "metrics")}
        check_call("task", factory, settings | {"metrics": made})
        return factory(**settings, metrics=made)


def targets_of(config: ConfigDict, task: "Task | None") -> str | None:
    """The kind of targets of a run's task, of `types.TARGETS`; None where `build` will say what is wrong with it."""
    from fedjax8.components import SEAMS, build_component

    if task is not None:
        return task.targets
    with contextlib.suppress(UserError):
        return build_component("config.task", config.task, SEAMS["task"]).targets
    return None


def data_object(value: Any, targets: str | None = None) -> Any:
    """A data set from a `Dataset`, or from arrays with these targets, of `types.TARGETS`; UserError for anything
    else."""
    from fedjax8.data.arrays import from_arrays
    from fedjax8.data.federated import Dataset
    from fedjax8.types import CLASSES, MARKS, VALUES

    if isinstance(value, Dataset):
        return value
    kind = targets if targets in (MARKS, VALUES) else CLASSES
    if isinstance(value, tuple) and len(value) in (2, 4):
        return from_arrays(*value, targets=kind)
    if isinstance(value, Mapping):
        takes = inspect.signature(from_arrays).parameters
        unknown = [name for name in value if name not in takes]
        if unknown or not {"x", "y"} <= set(value):
            raise UserError(
                f"data given as a mapping needs x and y, and takes {', '.join(takes)}; got {', '.join(map(str, value))}"
            )
        return from_arrays(**({"targets": kind} | dict(value)))
    raise UserError(
        "data must be the name of a source, a Dataset, arrays (x, y) or (x, y, x_test, y_test), or a mapping of "
        f"arrays; got a {type(value).__name__}"
    )


def model_object(value: Any) -> Any:
    """A `Model` from one, or from a flax module; UserError for anything else."""
    from flax import linen

    from fedjax8.models import from_linen, from_nnx
    from fedjax8.models.linen import TRAIN_ARGUMENTS
    from fedjax8.types import Model

    if isinstance(value, Model):
        return value
    if isinstance(value, linen.Module):
        takes = inspect.signature(value.__call__).parameters if callable(value) else {}
        named = [argument for argument in TRAIN_ARGUMENTS if argument in takes]
        return from_linen(value, train_argument=named[0] if len(named) == 1 else None)
    if callable(value) and not isinstance(value, Sequence):
        return from_nnx(value)
    raise UserError(
        "model must be the name of a model, a flax module such as nn.Dense(10), a function that builds an nnx module, "
        f"or a Model; got a {type(value).__name__}"
    )
