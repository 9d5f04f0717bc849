"""What WORKSPACE.md promises those who add: a sampler, a callback, an algorithm and a quantization rule, a short file
each, in a package of their own, named in one config."""

import importlib
import sys
import uuid

import numpy as np
import pytest

from fedjax8.build import build
from fedjax8.config import component, load_config
from fedjax8.running.runner import run
from fedjax8.running.schedule import Schedule

FILES = {
    "halves.py": '''"""Participation: clients with even numbers in one round, those with odd ones in the next."""

import numpy as np

from fedjax8.participation.base import Ask, Drawn, Participation, all_kept, generator


def halves() -> Participation:
    """Some of one half of the clients by turns."""

    def draw(ask: Ask) -> Drawn:
        half = np.arange(ask.round % 2, ask.num_clients, 2)
        ids = generator(ask.seed, ask.round).choice(half, ask.cohort_size, replace=False)
        return all_kept(np.sort(ids))

    return Participation(draw)


EXAMPLES = ({},)
''',
    "enough.py": '''"""Callback: ends a run that has sent enough."""

from fedjax8.callbacks.base import Callback, Decision, Memory, Moment


def enough(uplink_bytes: int) -> Callback:
    """A callback that ends a run when so many bytes went up."""

    def step(memory: Memory, moment: Moment) -> Decision:
        sent = moment.line["uplink_bytes"]
        return Decision(memory, f"{sent} bytes went up" if sent >= uplink_bytes else "")

    return Callback(step)


EXAMPLES = ({"uplink_bytes": 1},)
''',
    "halfway.py": '''"""Algorithm: the server goes half of the way to the clients' mean."""

import jax

from fedjax8.algorithms.fedavg import training_client
from fedjax8.algorithms.parts import Aggregate, ServerOutput, ServerState, from_parts
from fedjax8.types import Algorithm, LocalTraining


def halfway(local: LocalTraining, share: float = 0.5) -> Algorithm:
    """FedAvg with a shorter step."""

    def server(state: ServerState, mean: Aggregate, key) -> ServerOutput:
        old, new = state.variables.params, mean.tree["params"]
        return ServerOutput(jax.tree.map(lambda x, y: x + share * (y - x), old, new))

    return from_parts(local, client=training_client(local, "params", "uniform"), server=server)


EXAMPLES = ({},)
''',
    "config.py": '''"""Two layers on digits, the last one in float32, in training and in messages."""

from fedjax8.config import base_config, component


def get_config():
    config = base_config()
    config.model = component("mlp", hidden=(4,))
    config.client.epochs = 1
    config.cohort_size, config.eval_every = 4, 1
    config.format_rules = ("Dense_1=float32",)
    return config
''',
}
LONGEST = 40


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Name of a package on the path with these files."""
    name = f"theirs_{uuid.uuid4().hex}"
    (tmp_path / name).mkdir()
    for file, text in ({"__init__.py": ""} | FILES).items():
        (tmp_path / name / file).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield name
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[module]


def test_a_sampler_a_callback_an_algorithm_and_a_rule_take_a_short_file_each(package, tmp_path):
    assert all(len(text.splitlines()) <= LONGEST for text in FILES.values())
    config = load_config(str(tmp_path / package / "config.py"))
    config.participation = component(f"{package}.halves:halves")
    config.algorithm = component(f"{package}.halfway:halfway", share=0.25)
    # 64 x 4 in 8 bits with two clips of 4 bytes, 4 biases, and 4 x 10 + 10 numbers in float32.
    message = 64 * 4 + 2 * 4 + 4 * 4 + (40 + 10) * 4
    config.callbacks = (component(f"{package}.enough:enough", uplink_bytes=2 * 4 * message),)
    experiment = build(config)
    sim = experiment.simulation
    cohorts = [sim.participants.drawn(number).ids for number in range(4)]
    assert [set(ids % 2) for ids in cohorts] == [{0}, {1}, {0}, {1}]
    assert all(len(ids) == 4 for ids in cohorts) and not np.array_equal(cohorts[0], cohorts[2])
    schedule = Schedule(10, config.eval_every, config.checkpoint_every)
    outcome = run(sim, experiment.dataset.test, schedule, callbacks=experiment.callbacks)
    assert outcome.summary["rounds"] == 2 and outcome.summary["uplink_bytes"] == 2 * 4 * message
    assert outcome.summary["stopped_by"]["reason"] == f"{2 * 4 * message} bytes went up"
