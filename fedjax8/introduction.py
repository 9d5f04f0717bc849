"""The heading of a run, printed before its first round."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # JAX must not start before the devices are set up
    from fedjax8.build import Experiment
    from fedjax8.engine.state import SimulationState

PRIVATE = (
    "\nrows are private: the model starts from drawn ones, inputs are normalized by constants, labels are not counted; "
    "losses and clips in the log are not protected (docs/privacy.md)"
)
"""Line of a run whose rows are private."""


def start_words(experiment: "Experiment") -> str:
    """A line on the model that the run starts from, if there is one, and on its privacy where rows are private."""
    if experiment.start is None:
        return ""
    private = "; what it knows of these rows is outside of epsilon" if experiment.private else ""
    return f"\nstarts from the model of {experiment.start.words}{private}"


NOTHING_SENT = "\nnothing travels between server and clients: codecs and a deadline change nothing"
"""Line of a run whose algorithm has no messages."""


def validation_words(experiment: "Experiment") -> str:
    """A line on the validation part, if there is one, and on its privacy where rows are private."""
    if experiment.validation is None:
        return ""
    rows = len(experiment.validation["y"])
    private = "; they are outside of epsilon, and evaluations alone touch them" if experiment.private else ""
    return f"\n{rows:,} rows held out for validation, of {experiment.config.validation_of}{private}"


def codec_words(experiment: "Experiment") -> str:
    """The codecs of the directions in which anything is sent."""
    config, ways = experiment.config, {found.channel.direction for found in experiment.simulation.discover()}
    if "peer" in ways:
        return f"between clients {config.uplink.name} (uplink)"
    return f"up {config.uplink.name}, down {config.downlink.name}"


def introduction(experiment: "Experiment", state: "SimulationState", runs: int = 1) -> str:
    """Two lines on the experiment and its devices, and a third where rows are private."""
    import jax

    from fedjax8 import trees

    config = experiment.config
    variables = experiment.simulation.variables(state)
    weights = f"{trees.float32_bytes(variables.params) // 4:,} parameters"
    if variables.frozen:
        weights += f" trained and {trees.float32_bytes(variables.frozen) // 4:,} frozen"
    devices, processes = jax.devices(), jax.process_count()
    of_devices = f"{len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}"
    drawn = "" if config.participation.name == "uniform" else f" by {config.participation.name}"
    clock = f", clock {config.system.name}" * experiment.simulation.system.timed
    of_processes = f" of {processes} processes" if processes > 1 else ""
    return (
        f"{config.algorithm.name} on {experiment.dataset.name}: {config.model.name} with {weights} "
        f"(adapter {config.adapter.name}), {codec_words(experiment)}\n"
        f"{experiment.simulation.data.num_clients} clients by {config.partition.name}, {config.cohort_size} a round"
        f"{drawn}{clock}, {config.rounds} rounds, on {of_devices}"
        f"{of_processes}{f', {runs} seeds side by side' * (runs > 1)}"
        f"{start_words(experiment)}{validation_words(experiment)}"
        f"{NOTHING_SENT * (not experiment.simulation.discover())}{PRIVATE * experiment.private}"
    )
