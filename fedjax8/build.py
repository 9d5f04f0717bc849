"""Objects from a config: the only place where a string becomes an object."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from fedjax8.adapters.inputs import inputs
from fedjax8.attacks import attacked
from fedjax8.callbacks.base import Callback
from fedjax8.components import SEAMS, bind, build_component
from fedjax8.config import FIELDS, LARGEST_COUNT, MIXED, check_choice, component, is_component, plain, usable
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import Dataset, FederatedData, federate
from fedjax8.data.validation import ValidationPart, validation_part
from fedjax8.dropouts import with_dropout
from fedjax8.engine.fit import fit_of
from fedjax8.engine.simulation import Simulation, simulate
from fedjax8.errors import FAILED, Mistakes, UserError, mistakes_of
from fedjax8.executors.auto import default_chunk
from fedjax8.init_from import Start, open_start, started
from fedjax8.local import local_training, proximal, scheduled
from fedjax8.normalization import normalization, public_sample
from fedjax8.operations import step_operations
from fedjax8.privacy.accounting import WatchedFacts, accounted
from fedjax8.rates import check_proportional, check_rates, is_schedule, with_rate
from fedjax8.results.runs import flatten
from fedjax8.run_format import run_format_of
from fedjax8.tasks import Task, classification
from fedjax8.types import CLASSES, BatchPlan, Model, PyTree, StepGradient


class Experiment(NamedTuple):
    """The objects of a config."""

    config: ConfigDict
    dataset: Dataset
    simulation: Simulation
    private: bool = False
    """Whether an epsilon is stated, so that nothing outside its accounting may depend on a training row."""
    validation: Mapping[str, np.ndarray] | None = None
    """Columns `[V, ...]` held out of training for validation, if any."""
    callbacks: tuple[tuple[str, Callback], ...] = ()
    """Callbacks by name."""
    task: Task = classification()
    """What the model is trained for."""
    calibrated: bool = False
    """Whether a part of it is calibrated for the number of rounds."""
    start: Start | None = None
    """The model that it starts from, if it is another one's."""
    objects: Mapping[str, Any] = {}
    """Those of its objects that were given from Python, in place of what the config names, by field."""


def build_augment(names: tuple[str, ...]) -> Callable | None:
    """The chain of augmentations with these names, or None for none."""
    from fedjax8.data import augment

    with Mistakes() as mistakes:
        for name in names:
            mistakes.attempt(check_choice, "config.augment", name, ("crop", "flip"))
    return augment.chain(*(getattr(augment, name)() for name in names)) if names else None


def build_schedule(config: ConfigDict, weight_decay: float, rounds: int) -> Callable | None:
    """The schedule of the clients' learning rate, checked; None where the rate is a number."""
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
    """Number of natural clients of the data; UserError if none."""
    if not dataset.num_natural_clients:
        raise UserError(f"config.num_clients is 0, but {dataset.name} names no clients; set it to at least 1")
    return dataset.num_natural_clients


def split_seed_of(config: Any) -> int:
    """The seed of a config's split: its own, or the run's where that is -1."""
    return config.seed if config.split_seed == -1 else config.split_seed


def split_over(dataset: Dataset, split: Callable, num_clients: int, seed: int) -> FederatedData:
    """The data split over clients."""
    with mistakes_of("config.partition"):
        return federate(dataset, split, num_clients, seed)


def validation_split(clients: FederatedData, share: float, of: str, seed: int) -> ValidationPart:
    """The clients without the validation part, and that part if there is one."""
    if share:
        with mistakes_of("config.validation"):
            return validation_part(clients, share, of, seed)
    if of != FIELDS["validation_of"].default:
        raise UserError(f"config.validation_of={of} changes nothing without a share: set --config.validation=0.1")
    return ValidationPart(clients, None)


def num_outputs(task: Task, dataset: Dataset, validation: Mapping[str, np.ndarray] | None) -> int:
    """Outputs that the model needs; UserError where task and data do not go together."""
    found = task.num_outputs(dataset)
    task.check_rows(dataset.test, f"the test rows of {dataset.name}")
    if validation is not None:
        task.check_rows(validation, "the validation rows")
    return found


def check_evaluated(every: int, clients: int) -> None:
    """UserError for a number of clients to evaluate where none ever is; `--client_accuracy` has a number of its own."""
    if clients != FIELDS["evaluate_clients.clients"].default and not every:
        raise UserError(
            f"config.evaluate_clients.clients={clients} changes nothing without a period: set "
            "--config.evaluate_clients.every=N too"
        )


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


def build_callback(
    index: int, config: ConfigDict, task: Task, validation: float, private: bool
) -> tuple[str, Callback]:
    """The name of a callback, and the callback; it goes by the task's main metric if it names none, and by validation
    rows where some are held out.

    UserError for one that would decide by private training rows, which no epsilon accounts for.
    """
    where = f"config.callbacks.{index}"
    part = "validation" if validation else "test"
    callback = build_component(where, config, SEAMS["callbacks"], part=part, measures=task.measures)
    by_training = [metric for metric in callback.reads if "test_" not in metric and "validation_" not in metric]
    if private and by_training:
        raise UserError(
            f"{where}: {config.name} would decide by {by_training[0]}, a metric of private rows that no epsilon "
            "accounts for; let it go by test rows, or by validation rows (--config.validation=0.1)"
        )
    return config.name, callback


def check_shapes(model: Model, dataset: Dataset) -> Model:
    """The model; raises `UserError` if it cannot run on the data: traced, not run."""
    fit = fit_of(model, dataset.train, "config.model", dataset.name)
    if model.targets == CLASSES and fit.outputs[-1:] < (dataset.num_classes,):
        raise UserError(
            f"config.model gives {fit.outputs[-1]} outputs, but {dataset.name} has {dataset.num_classes} classes"
        )
    return model


def start_of(init_from: str, adapter: ConfigDict, data_dir: str | None) -> Start | None:
    """The model that the config names to start from; None if it names none.

    UserError if there is none there, or if the adapter reads another one's parameters from a file.
    """
    if not init_from:
        return None
    if "pretrained" in flatten(plain(adapter)).values():
        raise UserError(
            "config.init_from and the adapter pretrained both say what the model starts from; leave one of them out"
        )
    return open_start(init_from, data_dir)


def adapted(model: Any, adapter: Callable[..., Any], start: Start | None) -> Any:
    """The model with its adapter, which starts from another one if there is one; FAILED if a part of it has."""
    whole = adapter(model=model)
    if start is None or start is FAILED or whole is FAILED:
        return whole
    return started(model, lambda inner: adapter(model=inner), start)


def build_data(config: ConfigDict, data_dir: str | None = None) -> Dataset:
    """The data set of a config alone."""
    with Mistakes() as mistakes:
        usable(config, mistakes)
    targets = build_component("config.task", config.task, SEAMS["task"]).targets
    return build_component("config.data", config.data, SEAMS["data"], data_dir=data_dir, targets=targets)


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


def build(
    config: ConfigDict,
    data_dir: str | None = None,
    beside: Experiment | None = None,
    objects: Mapping[str, Any] | None = None,
) -> Experiment:
    """The experiment that a config describes, checked; reads the data, runs nothing.

    `beside` is an experiment whose config differs in its seed alone; its data and programs are shared. `objects` are a
    `Dataset` as `data`, a `Model` as `model` and a `Task` as `task`, in place of those that the config names.

    Raises `UserError` that names all mistakes, as far as they can be known: objects whose parts failed are not tried.
    """
    with Mistakes() as mistakes:
        attempt, given = mistakes.attempt, usable(config, mistakes)

        def make(field: str, **supplied: Any) -> Any:
            if objects and field in objects:
                return objects[field]
            inherits = run_format if field in ("adapter", "algorithm", "uplink", "downlink") else None
            bound = attempt(bind, f"config.{field}", getattr(given, field), SEAMS[field], tuple(supplied), inherits)
            return FAILED if bound is FAILED else attempt(bound.make, **{n: supplied[n] for n in bound.needs})

        client, personal = given.client, given.evaluate_clients
        attempt(check_evaluated, personal.every, personal.clients)
        formats_given = attempt(run_format_of, given.format, given.format_rules)
        run_format = None if formats_given is FAILED else formats_given
        task = make("task")
        kind = FAILED if task is FAILED else task.targets
        dataset = beside.dataset if beside else make("data", data_dir=data_dir, targets=kind)
        num_clients = given.num_clients or attempt(natural_clients, dataset)
        cohort_size = attempt(check_cohort, given.cohort_size, num_clients)
        split_seed = split_seed_of(given)
        clients = attempt(split_over, dataset, make("partition"), num_clients, split_seed)
        parts = attempt(validation_split, clients, given.validation, given.validation_of, split_seed)
        clients, validation = parts.clients, parts.rows
        cohort_size = attempt(lambda size, left: check_cohort(size, left.num_clients), cohort_size, clients)
        outputs = attempt(num_outputs, task, dataset, parts.rows)
        symbols = {} if dataset.num_classes is None else {"vocabulary": dataset.num_classes}
        model = attempt(lambda task, model: task.on(model), task, make("model", num_classes=outputs, **symbols))
        start = attempt(start_of, given.init_from, given.adapter, data_dir)
        model = adapted(model, functools.partial(make, "adapter"), start)
        augment = attempt(build_augment, given.augment)
        length = {"steps": client.steps} if client.steps else {"epochs": client.epochs}
        plan = attempt(batch_plan, client.batch_size, **length)
        attempt(check_steps, plan, clients)
        participation = make("participation")
        system = make("system", operations=lambda: step_operations(model, plan, dataset.train))
        facts = attempt(WatchedFacts, clients, cohort_size, given.rounds, given.seed, plan, participation)
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
        dropout = make("dropout")
        algorithm = attempt(with_dropout, algorithm, dropout)
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
            participation=participation,
            system=system,
        )
        components = () if given.callbacks is FAILED else given.callbacks
        callbacks = [attempt(build_callback, i, c, task, given.validation, private) for i, c in enumerate(components)]
    known = (private, validation, tuple(callbacks), task, facts.read, start, objects or {})
    return Experiment(config, dataset, run, *known)
