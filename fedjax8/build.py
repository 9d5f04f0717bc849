"""Config to objects: the only place where a string becomes a thing."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from fedjax8 import trees
from fedjax8.adapters.inputs import inputs
from fedjax8.cohorts.auto import default_chunk
from fedjax8.config import check_call, component, is_component, validate
from fedjax8.data.batches import BatchPlan, batch_plan
from fedjax8.data.federated import Dataset, FederatedData, federate
from fedjax8.errors import UserError
from fedjax8.local import LocalTraining, local_training
from fedjax8.lookup import find, suggest
from fedjax8.privacy.accounting import Facts, accounted
from fedjax8.simulation.simulation import Simulation, simulate
from fedjax8.types import Algorithm, Codec, Execution, Model, Monitor, Refinement, StepGradient


class Experiment(NamedTuple):
    """A config, built."""

    config: ConfigDict
    dataset: Dataset
    clients: FederatedData
    model: Model
    plan: BatchPlan
    simulation: Simulation


def find_optimizer(name: str) -> Callable:
    """A server optimizer of `algorithms.server_optimizers`, any optimizer of optax, or `package.module:factory`."""
    from fedjax8.algorithms import server_optimizers

    if ":" in name:
        return find(name)
    for module in (server_optimizers, optax):
        factory = getattr(module, name, None)
        if callable(factory) and not name.startswith("_"):
            return factory
    known = [n for module in (server_optimizers, optax) for n in dir(module) if n[0].islower()]
    raise UserError(f"no optimizer {name!r} in optax{suggest(name, known)}")


def _finder(package: str) -> Callable[[str], Callable]:
    return lambda name: find(name, f"fedjax8.{package}")


class Seam(NamedTuple):
    """Where a field's components are looked up, and what they make."""

    finder: Callable[[str], Callable]
    kind: type | None


SEAMS = {
    "data": Seam(_finder("data.sources"), Dataset),
    "partition": Seam(_finder("data.partitions"), None),
    "model": Seam(_finder("models"), Model),
    "adapter": Seam(_finder("adapters"), Model),
    "privacy": Seam(_finder("privacy"), StepGradient),
    "algorithm": Seam(_finder("algorithms"), Algorithm),
    "uplink": Seam(_finder("codecs"), Codec),
    "downlink": Seam(_finder("codecs"), Codec),
    "executor": Seam(_finder("cohorts"), Execution),
    "monitor": Seam(_finder("algorithms.monitors"), Monitor),
    "refine": Seam(_finder("algorithms.refinements"), Refinement),
    "optimizer": Seam(find_optimizer, optax.GradientTransformation),
    "server_optimizer": Seam(find_optimizer, optax.GradientTransformation),
}
"""By field. A component inside another belongs to its own field's seam if it has one, else to its parent's."""
OURS = ("local", "model", "facts")
"""Arguments of factories that no setting may give."""


def build_component(where: str, config: ConfigDict, seam: Seam, **supplied: Any) -> Any:
    """The object that a component config describes.

    Args:
      where: dotted path for messages.
      seam: where to look it up, and what must come out.
      supplied: arguments that the program fills in where the factory takes them and the config does not; those in
        OURS may not be set at all.

    Raises:
      UserError: unknown name or setting, wrong type, or a value that the factory refuses.
    """
    factory = seam.finder(config.name)
    settings = {k: _build_nested(f"{where}.{k}", k, v, seam) for k, v in config.items() if k != "name"}
    takes = inspect.signature(factory).parameters
    given = {k: v for k, v in supplied.items() if k in takes and (k not in settings or k in OURS)}
    check_call(where, factory, settings, supplied=list(given))
    try:
        made = factory(**given, **settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error
    if seam.kind is not None and not isinstance(made, seam.kind):
        raise UserError(f"{where}: {config.name} gives a {type(made).__name__}, but a {seam.kind.__name__} is needed")
    return made


def _build_nested(where: str, field: str, value: Any, seam: Seam) -> Any:
    """Builds components that stand inside a setting: alone, in a list, or as values of a mapping.

    An adapter becomes a function of the model that it changes, which is built and checked when that is there.
    """
    seam = SEAMS.get(field, seam)
    if is_component(value):
        if seam.kind is Model and "model" in inspect.signature(seam.finder(value.name)).parameters:
            return lambda model: build_component(where, value, seam, model=model)
        return build_component(where, value, seam)
    if field in SEAMS and isinstance(value, str):
        raise UserError(f"{where} is a component: set --{where}.name={value}")
    if type(value) in (list, tuple):
        return tuple(_build_nested(f"{where}.{i}", field, v, seam) for i, v in enumerate(value))
    if isinstance(value, Mapping | ConfigDict):
        return {k: _build_nested(f"{where}.{k}", field, v, seam) for k, v in value.items()}
    return value


def build_augment(names: tuple[str, ...]) -> Callable | None:
    """The chain of augmentations with these names, or None for none."""
    from fedjax8.data import augment

    allowed = ("crop", "flip")
    for name in names:
        if name not in allowed:
            raise UserError(f"config.augment: no {name!r}; allowed are {', '.join(allowed)}{suggest(name, allowed)}")
    return augment.chain(*(getattr(augment, name)() for name in names)) if names else None


def build_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The clients' optimizer. Biases, norms and clips do not decay, only arrays of two dimensions or more: by
    `weight_decay`, in front of it, and by its own decay if it takes a mask (`adamw`, `lion`, `lamb`, `lars`)."""

    def arrays(params):
        return jax.tree.map(lambda x: x.ndim > 1, params)

    masks = {"mask": arrays, "weight_decay_mask": arrays}
    optimizer = build_component("config.client.optimizer", config.optimizer, SEAMS["optimizer"], **masks)
    if not config.weight_decay:
        return optimizer
    return optax.chain(optax.add_decayed_weights(config.weight_decay, arrays), optimizer)


def build_clients(config: ConfigDict, dataset: Dataset) -> FederatedData:
    """The data split over clients as the config says."""
    split = build_component("config.partition", config.partition, SEAMS["partition"])
    num_clients = config.num_clients or dataset.num_natural_clients
    if not num_clients:
        raise UserError(f"config.num_clients is 0, but {dataset.name} names no clients; set it to at least 1")
    return federate(dataset, split, num_clients, config.seed)


def build_algorithm(config: ConfigDict, local: LocalTraining, facts: Facts) -> Algorithm:
    """The algorithm; one that needs the clients' step size (SCAFFOLD) gets it, and is refused without plain SGD."""
    optimizer = config.client.optimizer
    plain_sgd = set(optimizer) <= {"name", "learning_rate"} and optimizer.name == "sgd"
    takes = inspect.signature(SEAMS["algorithm"].finder(config.algorithm.name)).parameters
    supplied: dict[str, Any] = {"local": local, "facts": facts}
    if "learning_rate" in takes and "learning_rate" not in config.algorithm:
        if not plain_sgd or config.client.weight_decay:
            raise UserError(
                f"config.algorithm: {config.algorithm.name} divides by the clients' step size and needs plain SGD; set "
                "--config.client.optimizer.name=sgd with a learning_rate only, and no weight_decay"
            )
        supplied["learning_rate"] = optimizer.learning_rate
    return build_component("config.algorithm", config.algorithm, SEAMS["algorithm"], **supplied)


def check_shapes(model: Model, dataset: Dataset) -> None:
    """Raises `UserError` if the model cannot run on the data: traced, not run."""
    batch = {name: jax.ShapeDtypeStruct((2, *c.shape[1:]), c.dtype) for name, c in dataset.train.items()}
    batch["mask"] = jax.ShapeDtypeStruct((2,), np.float32)
    misfit = f"config.model does not fit rows of shape {dataset.train['x'].shape[1:]} of {dataset.name}"
    try:
        key = jax.random.key(0)
        variables = jax.eval_shape(model.init, key, batch)
        outputs, _ = jax.eval_shape(lambda v, b: model.apply(v, b), variables, batch)
        jax.eval_shape(lambda v, b: model.apply(v, b, key=key, train=True), variables, batch)
    except UserError:  # says what is wrong, as of a file that does not fit
        raise
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{misfit}: {' '.join(str(error).split())[:200]}") from error
    leaves = trees.named_leaves(variables.params) | trees.named_leaves(variables.frozen)
    empty = [name for name, x in leaves.items() if 0 in x.shape]
    if empty:
        raise UserError(f"{misfit}: nothing is left at {empty[0]}")
    if outputs.shape[-1] < dataset.num_classes:
        raise UserError(
            f"config.model gives {outputs.shape[-1]} outputs, but {dataset.name} has {dataset.num_classes} classes"
        )
    try:
        jax.eval_shape(model.loss, outputs, batch)
    except (TypeError, ValueError) as error:
        labels = "a label a row" if batch["y"].ndim == 1 else f"{batch['y'].shape[1]} labels a row (try char_lstm)"
        raise UserError(
            f"config.model gives outputs of shape {outputs.shape[1:]} a row, but {dataset.name} has {labels}"
        ) from error


def build_seeds(config: ConfigDict, seeds: Sequence[int], data_dir: str | None = None) -> list[Experiment]:
    """The experiment of a config once for each seed, to be run `side_by_side`; UserError for seeds named twice.

    Each runs on one device: executors of several devices are replaced by `chunked` with the same chunk.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds: give different seeds, such as 0,1,2; got {','.join(map(str, seeds)) or 'none'}")
    experiments: list[Experiment] = []
    for seed in seeds:
        own = ConfigDict(config, convert_dict=False)
        own.seed = seed
        if config.executor.name in ("auto", "pmap"):
            own.executor = component("chunked", chunk=config.executor.get("chunk") or default_chunk())
        experiments.append(build(own, data_dir, beside=experiments[0] if experiments else None))
    return experiments


def build(config: ConfigDict, data_dir: str | None = None, beside: Experiment | None = None) -> Experiment:
    """Everything that a config describes, checked; reads the data, runs nothing.

    `beside` is an experiment whose config differs in its seed alone; its data and what it compiles are shared.
    """
    validate(config)
    if beside:
        dataset = beside.dataset
    else:
        dataset = build_component("config.data", config.data, SEAMS["data"], data_dir=data_dir)
    clients = build_clients(config, dataset)
    outputs = {"num_classes": dataset.num_classes, "vocabulary": dataset.num_classes}
    model = build_component("config.model", config.model, SEAMS["model"], **outputs)
    model = build_component("config.adapter", config.adapter, SEAMS["adapter"], model=model)
    model = inputs(model, dataset.mean, dataset.std, augment=build_augment(config.augment))
    check_shapes(model, dataset)

    client = config.client
    length = {"steps": client.steps} if client.steps else {"epochs": client.epochs}
    plan = batch_plan(client.batch_size, **length)
    facts = Facts(clients, cohort_size=config.cohort_size, rounds=config.rounds, seed=config.seed, plan=plan)
    gradient = build_component("config.privacy", config.privacy, SEAMS["privacy"], facts=facts)
    local = local_training(model, build_optimizer(client), plan, gradient)
    algorithm = accounted(build_algorithm(config, local, facts), gradient)
    run = simulate(
        model,
        algorithm,
        clients,
        cohort_size=config.cohort_size,
        uplink=build_component("config.uplink", config.uplink, SEAMS["uplink"]),
        downlink=build_component("config.downlink", config.downlink, SEAMS["downlink"]),
        seed=config.seed,
        execution=build_component("config.executor", config.executor, SEAMS["executor"]),
        batches=plan,
        rounds_per_call=config.rounds_per_call or None,
        feed_mode=config.feed,
        beside=beside.simulation if beside else None,
    )
    return Experiment(config, dataset, clients, model, plan, run)
