"""Small facts of exchanges, resumes and summaries, each worked out by hand."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.parts import ClientOutput, ServerOutput, from_parts
from fedjax8.codecs.none import none
from fedjax8.engine.simulation import Simulation
from fedjax8.engine.state import SimulationState
from fedjax8.engine.states.client_states import client_states
from fedjax8.engine.states.disk_states import DiskStates
from fedjax8.exchange.ledger import Ledger
from fedjax8.running.checkpoints import open_checkpoints
from fedjax8.running.runner import run
from fedjax8.running.schedule import Schedule
from fedjax8.types import Sections


def test_the_extremes_of_what_is_watched_are_of_clients_that_weigh(toys):
    """Client 1 has no weight and the largest value, client 2 none and the smallest."""

    def make(local):
        def client(start, extra, memory, rows, key, round_number):
            value = jnp.float32([3.0, 99.0, -99.0, 5.0])[rows.start]
            weight = jnp.float32([1.0, 0.0, 0.0, 2.0])[rows.start]
            return ClientOutput({"params": {"x": value}}, weight, start, (), {})

        def server(state, mean, key):
            return ServerOutput(mean.tree["params"], (), {"lowest": mean.lowest["x"], "highest": mean.highest["x"]})

        return from_parts(local, client=client, server=server, watch=lambda sent: sent["params"])

    sim = toys.build(make, toys.clients([1.0] * 4, [1.0] * 4), steps=1)
    state, metrics = sim.run_round(sim.init())
    assert (metrics["lowest"], metrics["highest"]) == (3.0, 5.0)
    assert float(sim.variables(state).params["x"]) == pytest.approx((3 + 2 * 5) / 3)


def test_float32_bytes_of_a_message_of_parts_are_those_of_the_tree_once(toys):
    """A message of a byte and two parts of 4 bytes: 9 bytes sent up and 4 down, where float32 takes 4 each way."""

    def encode(key, state, tree):
        x = tree["params"]["x"]
        return Sections(jnp.uint8([3]), (x, x)), state

    codec = none()._replace(encode=encode, decode=lambda state, message: {"params": {"x": message.parts[0]}})
    make = lambda local: fedavg(local, model_state="fixed")
    sim = toys.build(make, toys.clients([1.0] * 3, [1.0] * 3), steps=1, uplink=codec)
    ledger = sim.run_round(sim.init())[0].ledger
    assert (ledger.uplink_bytes, ledger.downlink_bytes) == (3 * 9, 3 * 4)
    assert ledger.float32_bytes == 3 * 4 + 3 * 4
    assert ledger.saving == pytest.approx(24 / 39)


def test_states_on_disk_go_back_to_the_round_of_the_checkpoint_that_is_restored(tmp_path):
    first = {"x": np.float32(7)}
    store = client_states(first, 5, folder=tmp_path / "states", limit_bytes=0)
    assert isinstance(store, DiskStates)
    write = lambda ids, values: store.write(np.array(ids), {"x": np.float32(values)})
    with open_checkpoints(tmp_path) as checkpoints:
        write([0, 1], [10, 11])
        server = {"w": jnp.float32(1)}
        checkpoints.save(SimulationState(1, server, {}, store, Ledger()), 3.0)
        write([1, 2], [21, 22])  # rounds after the checkpoint
        state, seconds = checkpoints.restore(SimulationState(0, server, {}, store, Ledger()))
    assert (state.round, seconds) == (1, 3.0)
    np.testing.assert_array_equal(state.clients.read(np.arange(5))["x"], [10, 11, 7, 7, 7])


def test_seconds_go_on_from_those_before_a_resume(toys, tmp_path, monkeypatch):
    """A clock that each round takes 5000 s further, and the pause between two runs of a round each by 10^9."""
    sim, ahead, real = toys.build(fedavg, toys.clients([1.0, 1.0], [1.0, 2.0]), steps=1), [0.0], time.monotonic
    run_rounds = Simulation.run_rounds

    def slow(*arguments, **settings):
        ahead[0] += 5000.0
        return run_rounds(*arguments, **settings)

    monkeypatch.setattr(Simulation, "run_rounds", slow)
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead[0])
    test = {"a": np.float32([1]), "b": np.float32([1])}
    schedule = Schedule(rounds=1, eval_every=1, checkpoint_every=1)
    first = run(sim, test, schedule, workdir=tmp_path).summary["seconds"]
    ahead[0] += 1e9
    second = run(sim, test, schedule._replace(rounds=2), workdir=tmp_path).summary["seconds"]
    assert 5000 <= first < 9000  # the rest is what the computer really took
    assert 10_000 <= second < 14_000
