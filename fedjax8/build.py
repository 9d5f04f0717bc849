"""Config to objects: the only place where a string becomes a thing."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from fedjax8.adapters.inputs import inputs
from fedjax8.algorithms.monitors.base import Monitor
from fedjax8.algorithms.refinements.base import Refinement
from fedjax8.attacks import attacked
from fedjax8.config import LARGEST_COUNT, MIXED, check_call, check_choice, component, is_component, usable
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import Dataset, FederatedData, federate
from fedjax8.dropouts import Dropout, with_dropout
from fedjax8.engine.fit import fit_of
from fedjax8.engine.simulation import Simulation, simulate
from fedjax8.errors import FAILED, Mistakes, UserError, mistakes_of
from fedjax8.executors.auto import default_chunk
from fedjax8.local import local_training, proximal, scheduled
from fedjax8.lookup import find
from fedjax8.normalization import normalization, public_sample
from fedjax8.numerics import formats
from fedjax8.privacy.accounting import Facts, accounted
from fedjax8.rates import (
    check_proportional,
    check_rates,
    find_optimizer,
    find_schedule,
    is_schedule,
    no_server_schedule,
    with_rate,
)
from fedjax8.types import Aggregator, Algorithm, Attack, BatchPlan, Codec, Executor, Model, PyTree, StepGradient


class Experiment(NamedTuple):
    """A config, built."""

    config: ConfigDict
    dataset: Dataset
    simulation: Simulation
    private: bool = False
    """Whether an epsilon is stated, so that nothing but what it accounts for may depend on a training row."""


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
    "aggregate": Seam(_finder("algorithms.aggregators"), Aggregator),
    "attack": Seam(_finder("attacks"), Attack),
    "dropout": Seam(_finder("dropouts"), Dropout),
    "uplink": Seam(_finder("codecs"), Codec),
    "downlink": Seam(_finder("codecs"), Codec),
    "executor": Seam(_finder("executors"), Executor),
    "monitor": Seam(_finder("algorithms.monitors"), Monitor),
    "refine": Seam(_finder("algorithms.refinements"), Refinement),
    "optimizer": Seam(find_optimizer, optax.GradientTransformation),
    "server_optimizer": Seam(find_optimizer, optax.GradientTransformation),
    "base_optimizer": Seam(find_optimizer, optax.GradientTransformation),
    "learning_rate": Seam(find_schedule, None),
    "server_learning_rate": Seam(no_server_schedule, None),
}
"""By field. A component inside another belongs to its own field's seam if it has one, else to its parent's."""
OURS = ("local", "model", "facts", "plan")
"""Arguments of factories that no setting may give."""


def build_component(where: str, config: ConfigDict, seam: Seam, **supplied: Any) -> Any:
    """The object that a component config describes.

    Args:
      where: dotted path for messages.
      seam: where to look it up, and what must come out.
      supplied: arguments that the program fills in where the factory takes them and the config does not; those in
        OURS may not be set at all.

    Raises:
      UserError: unknown name or settings, wrong types, or a value that the factory refuses.
    """
    bound = bind(where, config, seam, supplied)
    return FAILED if bound is FAILED else bound.make(**{name: supplied[name] for name in bound.needs})


class RunFormat:
    """The 8-bit format of a run, `config.format`: handed to every part whose factory has a setting `format` that is
    None by default."""

    def __init__(self, name: str) -> None:
        self.name, self.used = name, False

    def given(self, where: str, config: ConfigDict, takes: Mapping[str, inspect.Parameter]) -> dict[str, str]:
        """What a part is given; UserError if its own format is another, or missing where each part must have one."""
        if "format" not in takes or takes["format"].default is not None:
            return {}
        self.used, own = True, config.get("format")
        if own is not None and own not in formats.FORMATS:
            return {}  # the factory says which there are
        if self.name == MIXED and own is None:
            raise UserError(f"config.format is {MIXED}, so each part names its format: set --{where}.format")
        if own not in (None, self.name) and self.name != MIXED:
            raise UserError(
                f"{where}.format is {own}, but config.format, which all parts inherit, is {self.name}; set "
                f"--config.format={own} for all, or --config.format={MIXED} and a format for each part"
            )
        return {"format": self.name} if own is None else {}

    def check_used(self) -> None:
        """Raises UserError if it is not the default and no part took it."""
        if self.name != formats.DEFAULT and not self.used:
            raise UserError(
                f"config.format={self.name} changes nothing, since no adapter, codec or refinement of this run takes "
                "it; leave it out, or set --config.adapter.name=qat or --config.uplink.name=fp8"
            )


class Bound(NamedTuple):
    """A component that is all there but for what the program supplies."""

    needs: Sequence[str]
    """Arguments of `make`."""
    make: Callable[..., Any]


def bind(
    where: str, config: ConfigDict, seam: Seam, supplies: Collection[str], run_format: RunFormat | None = None
) -> Bound:
    """A component whose settings, and those of components inside it, are checked before what `supplies` names is there.

    What of that its factory takes, and the config does not give, it needs; parts without a format of their own inherit
    `run_format`. Raises as `build_component`; FAILED if one of its settings has.
    """
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
        mistakes.attempt(check_call, where, factory, settings, needs)
    if any(value is FAILED for value in settings.values()):
        return FAILED

    def make(**supplied: Any) -> Any:
        with mistakes_of(where):
            made = factory(**supplied, **settings)
        if seam.kind is not None and not isinstance(made, seam.kind):
            needed = seam.kind.__name__
            raise UserError(f"{where}: {config.name} gives a {type(made).__name__}, but a {needed} is needed")
        return made

    return Bound(needs, make)


def _nested(where: str, field: str, value: Any, seam: Seam, run_format: RunFormat | None = None) -> Any:
    """Builds components that stand inside a setting: alone, in a list, or as values of a mapping.

    An adapter becomes a function of the model that it changes, which is built when that is there.
    """
    seam = SEAMS.get(field, seam)
    if is_component(value):
        bound = bind(where, value, seam, ("model",) if seam.kind is Model else (), run_format)
        if bound is FAILED:
            return FAILED
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


def build_augment(names: tuple[str, ...]) -> Callable | None:
    """The chain of augmentations with these names, or None for none."""
    from fedjax8.data import augment

    with Mistakes() as mistakes:
        for name in names:
            mistakes.attempt(check_choice, "config.augment", name, ("crop", "flip"))
    return augment.chain(*(getattr(augment, name)() for name in names)) if names else None


def build_schedule(config: ConfigDict, weight_decay: float, rounds: int) -> Callable | None:
    """The schedule that stands in the place of the clients' learning rate, checked; None for a number."""
    where, rate = "config.client.optimizer.learning_rate", config.get("learning_rate")
    if not is_schedule(rate):
        return None
    schedule = build_component(where, rate, SEAMS["learning_rate"]) if is_component(rate) else rate
    check_rates(where, schedule, rounds)
    check_proportional("config.client.optimizer", lambda at: build_optimizer(with_rate(config, at), weight_decay))
    return schedule


def build_optimizer(config: ConfigDict, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """The clients' optimizer, at a rate of 1 where that is a schedule.

    Biases, norms and clips do not decay, only arrays of two dimensions or more: by `weight_decay`, in front of it, and
    by its own decay if it takes a mask (`adamw`, `lion`, `lamb`, `lars`).
    """
    if is_schedule(config.get("learning_rate")):
        config = with_rate(config, 1.0)

    def arrays(params: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    masks = {"mask": arrays, "weight_decay_mask": arrays}
    optimizer = build_component("config.client.optimizer", config, SEAMS["optimizer"], **masks)
    return optax.chain(optax.add_decayed_weights(weight_decay, arrays), optimizer) if weight_decay else optimizer


def natural_clients(dataset: Dataset) -> int:
    """How many clients the data names; UserError if none."""
    if not dataset.num_natural_clients:
        raise UserError(f"config.num_clients is 0, but {dataset.name} names no clients; set it to at least 1")
    return dataset.num_natural_clients


def split_over(dataset: Dataset, split: Callable, num_clients: int, seed: int) -> FederatedData:
    """The data split over clients."""
    with mistakes_of("config.partition"):
        return federate(dataset, split, num_clients, seed)


def check_cohort(cohort_size: int, num_clients: int) -> int:
    """The cohort's size; UserError if there are fewer clients."""
    if cohort_size > num_clients:
        raise UserError(
            f"config.cohort_size is {cohort_size}, but must be between 1 and the number of clients, {num_clients}"
        )
    return cohort_size


def check_steps(plan: BatchPlan, clients: FederatedData) -> None:
    """Raises `UserError` if a client takes more steps a round than the devices count, in int32."""
    epochs = plan.epochs or 0
    if -(-clients.num_positions // plan.batch_size) * epochs <= LARGEST_COUNT:  # sizes need not be read
        return
    most = int(np.max(clients.sizes))
    steps = -(-most // plan.batch_size) * epochs
    if steps > LARGEST_COUNT:
        raise UserError(
            f"config.client: {plan.epochs} epochs of up to {most} rows are {steps} steps a round; at most "
            f"{LARGEST_COUNT} can be counted"
        )


def step_size(algorithm: ConfigDict, optimizer: ConfigDict, weight_decay: float) -> float | None:
    """The clients' step size, for an algorithm that divides by it (SCAFFOLD) and was not given it as `learning_rate`;
    UserError unless clients take steps of plain SGD. None for other algorithms."""
    with mistakes_of("config.algorithm.name"):
        takes = inspect.signature(SEAMS["algorithm"].finder(algorithm.name)).parameters
    if "learning_rate" not in takes or "learning_rate" in algorithm:
        return None
    if optimizer.name != "sgd" or not set(optimizer) <= {"name", "learning_rate"} or weight_decay:
        raise UserError(
            f"config.algorithm: {algorithm.name} divides by the clients' step size and needs plain SGD; set "
            "--config.client.optimizer.name=sgd with a learning_rate only, and no weight_decay"
        )
    return 1.0 if is_schedule(optimizer.learning_rate) else optimizer.learning_rate


def states_epsilon(gradient: StepGradient, algorithm: ConfigDict) -> bool:
    """Whether the run accounts for the privacy of examples, or of clients."""
    with mistakes_of("config.algorithm.name"):
        return (
            bool(gradient.privacy(1))
            or "facts" in inspect.signature(SEAMS["algorithm"].finder(algorithm.name)).parameters
        )


def check_shapes(model: Model, dataset: Dataset) -> Model:
    """The model; raises `UserError` if it cannot run on the data: traced, not run."""
    fit = fit_of(model, dataset.train, "config.model", dataset.name)
    if fit.outputs[-1:] < (dataset.num_classes,):
        raise UserError(
            f"config.model gives {fit.outputs[-1]} outputs, but {dataset.name} has {dataset.num_classes} classes"
        )
    return model


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

    Raises `UserError` that names everything that is wrong, as far as it can be known: what is built from something that
    could not be is not tried.
    """
    with Mistakes() as mistakes:
        attempt, given = mistakes.attempt, usable(config, mistakes)

        def make(field: str, **supplied: Any) -> Any:
            inherits = run_format if field in ("adapter", "algorithm", "uplink", "downlink") else None
            bound = attempt(bind, f"config.{field}", getattr(given, field), SEAMS[field], tuple(supplied), inherits)
            return FAILED if bound is FAILED else attempt(bound.make, **{n: supplied[n] for n in bound.needs})

        client = given.client
        run_format = None if given.format is FAILED else RunFormat(given.format)
        dataset = beside.dataset if beside else make("data", data_dir=data_dir)
        num_clients = given.num_clients or attempt(natural_clients, dataset)
        cohort_size = attempt(check_cohort, given.cohort_size, num_clients)
        clients = attempt(split_over, dataset, make("partition"), num_clients, given.seed)
        model = make("model", num_classes=dataset.num_classes, vocabulary=dataset.num_classes)
        model = make("adapter", model=model)
        augment = attempt(build_augment, given.augment)
        length = {"steps": client.steps} if client.steps else {"epochs": client.epochs}
        plan = attempt(batch_plan, client.batch_size, **length)
        attempt(check_steps, plan, clients)
        facts = attempt(Facts, clients, cohort_size, given.rounds, given.seed, plan)
        gradient = make("privacy", facts=facts)
        private = attempt(states_epsilon, gradient, given.algorithm)
        normal = attempt(normalization, dataset, given.input_mean, given.input_std, private)
        mean, std = (FAILED, FAILED) if normal is FAILED else normal
        model = attempt(inputs, model, mean, std, augment=augment)
        fitting = attempt(check_shapes, model, dataset)
        optimizer = attempt(build_optimizer, client.optimizer, client.weight_decay)
        local = attempt(local_training, model, optimizer, plan, gradient, keep_optimizer=client.keep_optimizer)
        schedule = attempt(build_schedule, client.optimizer, client.weight_decay, given.rounds)
        local = attempt(proximal, local, client.proximal)
        local = local if schedule is None else attempt(scheduled, local, schedule)
        rate = attempt(step_size, given.algorithm, client.optimizer, client.weight_decay)
        algorithm = make("algorithm", local=local, facts=facts, learning_rate=rate)
        algorithm = attempt(accounted, algorithm, gradient)
        algorithm = attempt(attacked, algorithm, make("attack", num_classes=dataset.num_classes))
        algorithm = attempt(with_dropout, algorithm, make("dropout", plan=plan))
        uplink, downlink, executor = make("uplink"), make("downlink"), make("executor")
        if run_format is not None:
            attempt(run_format.check_used)
        fit: Any = FAILED if fitting is FAILED else algorithm  # said above
        run = attempt(
            simulate,
            fit,
            clients,
            cohort_size=cohort_size,
            uplink=uplink,
            downlink=downlink,
            seed=given.seed,
            executor=executor,
            rounds_per_call=given.rounds_per_call or None,
            feed_mode=given.feed,
            mixed_formats=given.format == MIXED,
            beside=beside.simulation if beside else None,
            sample=attempt(public_sample, dataset, mean, std) if private else None,
        )
    return Experiment(config, dataset, run, private)
