"""The benchmark's workloads: configs of fedjax8, and one more round of them at a time.

All but W7 are plain FedAvg in one local epoch of SGD, on made-up data. "Samples" are images, or sequences in W3.

          clients (samples of each)  a round  batch  model                parameters  stands for
    W1    1000 (50) of 32x32x3            50     10  simple_cnn            1,626,442  a usual experiment
    W2    1000 (60) of 28x28             100     20  mlp 784-200-10          159,010  small products
    W3    715 (median 31, largest         50      4  char_lstm, two          820,522  recurrence; clients of very
          775) of 80 symbols                         layers of 256                    unequal size
    W4    100 (50) of 32x32x3             10     10  resnet18, GroupNorm  11,173,962  a large model
    W5    1,000,000 (1 to 200) of       1000     10  logistic 784-10           7,850  many clients, next to no
          28x28 as windows into 60,000                                                work
    W6    100 (600) of 28x28              10     20  lenet5                   61,706  few channels
    W7    30 (2000) of 28x28              30     32  lenet5, tanh             61,706  workers in lockstep

W1, W2 and W6 are those that simulators of federated learning are compared on. W3 has the clients and the batch of the
Shakespeare task of Reddi et al., "Adaptive federated optimization", ICLR 2021, with text made up to have roles of the
same sizes. W4's clients are W1's, a tenth as many. The batches of W3 and W5 are small against their clients, so that
less than 5 % of the rows are padding of last batches. W7 is FDA's synchronous baseline on MNIST's shapes with Adam, 20
steps a round; monitors are set against it by `--compare="config.algorithm.monitor.name=linear"`.
"""

import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

PRECISIONS = ("float32", "fp8")


class Workload(NamedTuple):
    """The fields of a config that define a workload."""

    data: tuple[str, dict[str, Any]]
    """A component's name and settings, as are the next two."""
    partition: tuple[str, dict[str, Any]]
    model: tuple[str, dict[str, Any]]
    clients: int
    """0 for as many as the data names."""
    cohort: int
    batch: int
    parameters: int
    """Parameters of the float32 model."""
    learning_rate: float = 0.1
    more: tuple[tuple[str, str], ...] = ()
    """Further fields of the config, as in a variant's overrides."""


def _images(shape: tuple[int, ...], count: int) -> tuple[str, dict[str, Any]]:
    return "synthetic", {"shape": shape, "num_examples": count, "num_test": 100}


_IID, _COLOR, _GRAY = ("iid", {}), (32, 32, 3), (28, 28, 1)
_LENET5_TANH = ("lenet5", {"activation": "tanh", "pool": "avg", "kernel_init": "glorot_uniform"})
_LOCKSTEP = (
    ("client.steps", "20"),
    ("client.optimizer.name", "adam"),
    ("client.optimizer.learning_rate", "0.001"),
    ("algorithm.name", "fda"),
    ("algorithm.theta", "1.5"),
    ("algorithm.monitor.name", "synchronous"),
)

WORKLOADS = {
    "W1": Workload(_images(_COLOR, 50_000), _IID, ("simple_cnn", {}), 1000, 50, 10, 1_626_442),
    "W2": Workload(_images(_GRAY, 60_000), _IID, ("mlp", {"hidden": (200,)}), 1000, 100, 20, 159_010),
    "W3": Workload(("synthetic_text", {"num_test": 100}), ("by_key", {}), ("char_lstm", {}), 0, 50, 4, 820_522),
    "W4": Workload(_images(_COLOR, 5_000), _IID, ("resnet18", {}), 100, 10, 10, 11_173_962, 0.01),
    "W5": Workload(_images(_GRAY, 60_000), ("windows", {}), ("logistic", {}), 1_000_000, 1000, 10, 7_850),
    "W6": Workload(_images(_GRAY, 60_000), _IID, ("lenet5", {}), 100, 10, 20, 61_706),
    "W7": Workload(_images(_GRAY, 60_000), _IID, _LENET5_TANH, 30, 30, 32, 61_706, more=_LOCKSTEP),
}


def experiment_config(
    workload: Workload, precision: str = "float32", overrides: Sequence[tuple[str, str]] = (), chunk: int = 0
) -> Any:
    """The workload as a fedjax8 config.

    Args:
      workload: one of `WORKLOADS`, or one like it.
      precision: float32, or fp8 for QAT and FP8 messages both ways.
      overrides: fields to set, `(dotted path without config., text)`.
      chunk: clients vmapped at once; 0 for the machine's default.
    """
    from fedjax8.config import base_config, component, in_float32, override

    config = base_config()
    for field in ("data", "partition", "model"):
        name, settings = getattr(workload, field)
        config[field] = component(name, **settings)
    config.num_clients, config.cohort_size = workload.clients, workload.cohort
    config.client.batch_size, config.client.epochs = workload.batch, 1
    config.client.optimizer = component("sgd", learning_rate=workload.learning_rate)
    if precision == "float32":
        in_float32(config)
    if chunk:
        config.executor = component("auto", chunk=chunk)
    override(config, (*workload.more, *overrides))
    return config


CALL_SECONDS = 0.5


class Variant(NamedTuple):
    """A way to run a workload."""

    name: str
    precision: str
    overrides: tuple[tuple[str, str], ...] = ()


def variants(precisions: Sequence[str], compare: Sequence[str]) -> list[Variant]:
    """One for each precision, then one for each text of overrides, on top of the first precision."""
    made = [Variant(precision, precision) for precision in precisions]
    for text in compare:
        pairs = [word.lstrip("-").partition("=") for word in shlex.split(text)]
        if not pairs or not all(name.startswith("config.") and equals for name, equals, _ in pairs):
            raise ValueError(f'--compare={text!r} must be "config.FIELD=VALUE ..."')
        overrides = tuple((name.removeprefix("config."), value) for name, _, value in pairs)
        made.append(Variant(" ".join(f"{name}={value}" for name, value in overrides), precisions[0], overrides))
    return made


class Round(NamedTuple):
    """A round that was run: the mean of those of one call."""

    seconds: float
    samples: float
    """Rows that clients trained on, padding left out, repetitions included."""
    padding: float
    """Share of the round's work that is padding, as the simulation logs it."""
    rounds: int
    """Of the call that it was part of."""


class PreparedRun(NamedTuple):
    """A workload, ready to run rounds."""

    experiment: Any
    variables: Any
    one_call: Callable[[], Round]
    """Runs some more rounds as one dispatch, as a run does: one in the first two calls, then as many as fit in
    `CALL_SECONDS`, in powers of two."""
    chunk: int
    """Clients that each device really works on at once."""
    start_seconds: float
    """To build the experiment (data, split, model) and its first state."""


def samples_of_round(experiment: Any, number: int) -> int:
    """Rows that the clients of round `number`, from 0, train on."""
    from fedjax8.engine.planning import rows_seen

    simulation = experiment.simulation
    ids, lost = simulation.participants.drawn(number)[:2]
    return int(rows_seen(simulation.plan, simulation.data.windows(ids[~lost])[1]).sum())


def prepare(config: Any) -> PreparedRun:
    """Builds a config and its first state; nothing is run or compiled but the model's initialization."""
    import jax

    from fedjax8.build import SEAMS, build, build_component
    from fedjax8.executors import groups, padded

    begun = time.perf_counter()
    experiment = build(config)
    simulation = experiment.simulation
    state = simulation.init()
    jax.block_until_ready(state.server)
    start_seconds = time.perf_counter() - begun
    executor = build_component("config.executor", config.executor, SEAMS["executor"])
    places = padded(max(1, -(-simulation.participants.numbers.most_asked // executor.num_shards)), executor.chunk)

    count, compiled = 1, False

    def rounds() -> Round:
        nonlocal state
        first, lines, begun = state.round, [], time.perf_counter()
        while len(lines) < count:
            state, new_lines = simulation.run_rounds(state, count - len(lines), then=count, donate=True)
            lines += new_lines
        jax.block_until_ready(state.server)
        seconds = time.perf_counter() - begun
        samples = sum(samples_of_round(experiment, first + i) for i in range(count))
        return Round(seconds / count, samples / count, sum(line["padding"] for line in lines) / count, count)

    def one_call() -> Round:
        nonlocal count, compiled
        done = rounds()
        if compiled and count == 1 and (fitting := int(CALL_SECONDS / done.seconds)) > 1:
            count = 1 << (min(fitting, 64).bit_length() - 1)
            rounds()  # of a size that is compiled now
        compiled = True
        return done

    chunk = places // groups(places, executor.chunk)
    return PreparedRun(experiment, simulation.variables(state), one_call, chunk, start_seconds)
