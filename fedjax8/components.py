"""Objects from a config's components: looked up by name, their settings and types checked."""

import contextlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

from fedjax8.algorithms.monitors.base import Monitor
from fedjax8.algorithms.refinements.base import Refinement
from fedjax8.callbacks.base import Callback
from fedjax8.config import FIELDS, check_call, is_component, plain
from fedjax8.data.federated import Dataset
from fedjax8.dropouts import Dropout
from fedjax8.errors import FAILED, Mistakes, UserError, mistakes_of
from fedjax8.lookup import find
from fedjax8.participation import Participation
from fedjax8.rates import find_optimizer, find_schedule, no_server_schedule
from fedjax8.run_format import RunFormat
from fedjax8.systems import SystemModel
from fedjax8.tasks import Metric, Task
from fedjax8.topologies import Topology
from fedjax8.types import Aggregator, Algorithm, Attack, Codec, Executor, Model, StepGradient


def _finder(package: str) -> Callable[[str], Callable]:
    return lambda name: find(name, f"fedjax8.{package}")


class Seam(NamedTuple):
    """Lookup of a field's components, and the type of the objects that they make."""

    finder: Callable[[str], Callable]
    kind: type | None


KINDS: dict[str, type | None] = {
    "data.sources": Dataset,
    "data.partitions": None,
    "tasks": Task,
    "tasks.metrics": Metric,
    "models": Model,
    "adapters": Model,
    "privacy": StepGradient,
    "algorithms": Algorithm,
    "algorithms.aggregators": Aggregator,
    "algorithms.monitors": Monitor,
    "algorithms.refinements": Refinement,
    "attacks": Attack,
    "dropouts": Dropout,
    "participation": Participation,
    "systems": SystemModel,
    "topologies": Topology,
    "callbacks": Callback,
    "codecs": Codec,
    "executors": Executor,
    "optimizers": optax.GradientTransformation,
    "schedules": None,
    "no_schedules": None,
}
"""Type that the factories in a package make; None: a function of no particular type."""
INNER = {
    "aggregate": "algorithms.aggregators",
    "metrics": "tasks.metrics",
    "monitor": "algorithms.monitors",
    "topology": "topologies",
    "edge": "codecs",
    "refine": "algorithms.refinements",
    "server_optimizer": "optimizers",
    "base_optimizer": "optimizers",
    "learning_rate": "schedules",
    "server_learning_rate": "no_schedules",
}
"""Packages of components that stand inside others, by field."""
FINDERS = {"optimizers": find_optimizer, "schedules": find_schedule, "no_schedules": no_server_schedule}
"""Finders of components that no folder of this package holds."""
PACKAGES = {name.rpartition(".")[2]: field.package for name, field in FIELDS.items() if field.package} | INNER
SEAMS = {field: Seam(FINDERS.get(package) or _finder(package), KINDS[package]) for field, package in PACKAGES.items()}
"""By field. A component inside another belongs to its own field's seam if it has one, else to its parent's."""
GIVEN = "given"
"""As the name of a config's data, model or task: an object from Python, which no file holds."""
OURS = ("local", "model", "facts", "plan", "part", "targets", "measures")
"""Arguments of factories that no setting may give."""
SUPPLIED = (*OURS, "operations", "data_dir", "num_classes", "vocabulary", "mask", "weight_decay_mask")
"""Arguments with defaults that the program supplies, which are no settings of a run."""


def build_component(where: str, config: ConfigDict, seam: Seam, **supplied: Any) -> Any:
    """The object that a component config describes.

    Args:
      where: dotted path for messages.
      seam: its lookup and the type of the result.
      supplied: arguments that the program fills in where the factory takes them and the config does not; those in
        OURS may not be set at all.

    Raises:
      UserError: unknown name or settings, wrong types, or a value that the factory refuses.
    """
    bound = bind(where, config, seam, supplied)
    return FAILED if bound is FAILED else bound.make(**{name: supplied[name] for name in bound.needs})


class Bound(NamedTuple):
    """A component complete but for the arguments that the program supplies."""

    needs: Sequence[str]
    """Arguments of `make`."""
    make: Callable[..., Any]


def bind(
    where: str, config: ConfigDict, seam: Seam, supplies: Collection[str], run_format: RunFormat | None = None
) -> Bound:
    """A component whose settings, and those of components inside it, are checked before the arguments in `supplies` are
    there.

    It needs those that its factory takes and the config does not give; parts without a format of their own inherit
    `run_format`. Raises as `build_component`; FAILED if one of its settings has.
    """
    if config.name == GIVEN:
        field = where.removeprefix("config.")
        raise UserError(
            f"{where} was an object given from Python, which no file holds: give it again to fedjax8.experiment as "
            f"{field}, or set --{where}.name"
        )
    with mistakes_of(f"{where}.name"):
        factory = seam.finder(config.name)
    takes = inspect.signature(factory).parameters
    needs = [name for name in supplies if name in takes and (name not in config or name in OURS)]
    with Mistakes() as mistakes:
        settings = {
            k: mistakes.attempt(_nested, f"{where}.{k}", k, v, seam, run_format)
            for k, v in config.items()
            if k != "name"
        }
        if run_format is not None:
            inherited = mistakes.attempt(run_format.given, where, config, takes)
            settings |= {"format": FAILED} if inherited is FAILED else inherited
        inside = {k: v for k, v in settings.items() if isinstance(v, Bound)}
        known = {k: v for k, v in settings.items() if k not in inside}
        mistakes.attempt(check_call, where, factory, known, [*needs, *inside])
    if any(value is FAILED for value in settings.values()):
        return FAILED
    every = [*needs, *(name for inner in inside.values() for name in inner.needs if name not in needs)]

    def make(**supplied: Any) -> Any:
        with mistakes_of(where):
            own = {name: supplied[name] for name in needs}
            made_inside = {k: v.make(**{name: supplied[name] for name in v.needs}) for k, v in inside.items()}
            made = factory(**own, **known, **made_inside)
        if seam.kind is not None and not isinstance(made, seam.kind):
            needed = seam.kind.__name__
            raise UserError(f"{where}: {config.name} gives a {type(made).__name__}, but a {needed} is needed")
        return made

    return Bound(every, make)


def _nested(where: str, field: str, value: Any, seam: Seam, run_format: RunFormat | None = None) -> Any:
    """The setting with the components inside it built: alone, in a list, or as values of a mapping.

    An adapter becomes a function of the model that it changes, and a system model that needs the operations of a step a
    `Bound`: they are built when these are there.
    """
    seam = SEAMS.get(field, seam)
    if is_component(value):
        supplies = {Model: ("model",), SystemModel: ("operations",)}.get(seam.kind or object, ())
        bound = bind(where, value, seam, supplies, run_format)
        if bound is FAILED or (seam.kind is SystemModel and bound.needs):
            return bound
        return (lambda model: bound.make(model=model)) if bound.needs else bound.make()
    if field in SEAMS and isinstance(value, str):
        raise UserError(f"{where} is a component: set --{where}.name={value}")
    if type(value) in (list, tuple):
        items: Mapping[Any, Any] = dict(enumerate(value))
    elif isinstance(value, Mapping | ConfigDict):
        items = dict(value.items())
    else:
        return value
    with Mistakes() as mistakes:
        built = {k: mistakes.attempt(_nested, f"{where}.{k}", field, v, seam, run_format) for k, v in items.items()}
    if any(inner is FAILED for inner in built.values()):
        return FAILED
    return tuple(built.values()) if type(value) in (list, tuple) else built


def resolved(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON-ready dicts, in which components have the settings that were left to their defaults too, as far
    as they are plain values. Parts without a format of their own have the run's."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict) and not is_component(value):
            found[name] = {key: _resolved(key, inner, SEAMS.get(key), config.format) for key, inner in value.items()}
        else:
            found[name] = _resolved(name, value, SEAMS.get(name), config.format)
    return found


def _resolved(field: str, value: Any, seam: Seam | None, run_format: str) -> Any:
    """A config's value with the defaults of the components in it."""
    seam = SEAMS.get(field, seam)
    if not is_component(value) or seam is None:
        if isinstance(value, list | tuple):
            return [_resolved(field, inner, seam, run_format) for inner in value]
        if isinstance(value, Mapping | ConfigDict) and not is_component(value):
            return {str(key): _resolved(field, inner, seam, run_format) for key, inner in value.items()}
        return _plain_or_text(value)
    parameters: Sequence[inspect.Parameter] = ()
    with contextlib.suppress(ValueError):  # such as of a factory that is compiled
        parameters = tuple(inspect.signature(seam.finder(value.name)).parameters.values())
    settings = {key: _resolved(key, inner, seam, run_format) for key, inner in value.items()}
    for parameter in parameters:
        name, default = parameter.name, parameter.default
        if name in settings or name in SUPPLIED or default is inspect.Parameter.empty:
            continue
        default = run_format if name == "format" and default is None else default
        with contextlib.suppress(UserError):
            settings[name] = plain(default)
    return settings


def _plain_or_text(value: Any) -> Any:
    try:
        return plain(value)
    except UserError:
        return repr(value)
