"""What is frozen: in one place for all clients, in no message, state or checkpoint, and the same until the end."""

import json

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from fedjax8 import trees
from fedjax8.adapters.lora import lora
from fedjax8.adapters.subset import subset
from fedjax8.algorithms.fda import fda
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.side_by_side import side_by_side
from fedjax8.engine.simulation import simulate
from fedjax8.engine.start import sample_batch
from fedjax8.executors.chunked import chunked
from fedjax8.executors.vmap import vmap
from fedjax8.local import local_training
from fedjax8.models.linen import from_linen
from fedjax8.privacy.noisy_sgd import noisy_sgd
from fedjax8.running.recording import Run
from fedjax8.running.runner import measuring, run
from fedjax8.running.schedule import Schedule

K, HIDDEN, CLASSES, R = 256, 512, 3, 2
CLIENTS = 16
KERNEL = 4 * K * HIDDEN
"""Bytes of the frozen kernel, 512 KiB."""
HEAD = 4 * (HIDDEN + 1) * CLASSES
FACTORS = 4 * R * (K + HIDDEN)
SENT = {"subset": HEAD, "lora": HEAD + FACTORS}
"""Bytes of what is trained, by the shapes of the layers."""
FROZEN = {"subset": KERNEL + 4 * HIDDEN, "lora": KERNEL + 4 * HIDDEN + 4}
"""Bytes of the first kernel, its bias, and the scale of its factors."""


class Net(nn.Module):
    """A large layer and a head."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES, name="head")(nn.tanh(nn.Dense(HIDDEN, name="first")(x)))


def model_of(adapter):
    base = from_linen(Net())
    return {"subset": lambda: subset(base, "head"), "lora": lambda: lora(base, R), "none": lambda: base}[adapter]()


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2 * CLIENTS, K)).astype(np.float32)
    columns = {"x": x, "y": rng.integers(0, CLASSES, 2 * CLIENTS).astype(np.int32)}
    return FederatedData.from_owners(columns, np.repeat(np.arange(CLIENTS), 2), CLIENTS)


def simulation(data, adapter, make=fedavg, gradient=None, **settings):
    model = model_of(adapter)
    local = local_training(model, optax.sgd(0.1), batch_plan(2, steps=2), gradient)
    settings = {"cohort_size": 4, "executor": chunked(1)} | settings
    return simulate(make(local), data, uplink=none(), downlink=none(), **settings)


def same(a, b):
    a, b = trees.named_leaves(a), trees.named_leaves(b)
    assert a.keys() == b.keys()
    for name, x in a.items():
        np.testing.assert_array_equal(x, b[name], err_msg=name)


@pytest.fixture(scope="module")
def first(data):
    """A simulation over lora, its state and metrics after two rounds, and the state before."""
    sim = simulation(data, "lora")
    start = sim.init()
    state, lines = sim.run_rounds(start, 2)
    return sim, start, state, lines


def test_a_round_sends_what_is_trained_and_nothing_else_both_ways(first, data):
    of_subset = simulation(data, "subset")
    line = of_subset.run_round(of_subset.init())[1]
    for rounds, metrics, name in ((1, line, "subset"), (2, first[3][-1], "lora")):
        assert metrics["uplink_bytes"] == metrics["downlink_bytes"] == rounds * 4 * SENT[name]


def test_what_is_frozen_stays_as_the_model_made_it_bit_for_bit_and_the_rest_moves(first, data):
    sim, start, state, _ = first
    made = jax.jit(model_of("lora").init)(jax.random.fold_in(jax.random.key(0), 0), sample_batch(data))
    now = sim.variables(state)
    same(now.frozen, made.frozen)
    assert trees.num_bytes(now.frozen) == FROZEN["lora"]
    for name, leaf in trees.named_leaves(now.params).items():
        assert np.any(np.asarray(leaf) != np.asarray(trees.named_leaves(sim.variables(start).params)[name])), name


def test_no_state_holds_what_is_frozen(first):
    _, _, state, _ = first
    assert state.server.variables.frozen == {}
    held = state.server, state.down_states, state.clients.arrays()
    assert trees.num_bytes(held) == SENT["lora"]


def test_a_run_goes_on_from_a_checkpoint_without_it_as_if_unbroken(first, data, tmp_path, capsys):
    sim, _, unbroken, _ = first
    test = {name: column[:8] for name, column in data.columns.items()}
    run(sim, test, Schedule(1, 1, 1), workdir=tmp_path)
    stored = sum(f.stat().st_size for f in (tmp_path / "checkpoints").rglob("*") if f.is_file())
    assert SENT["lora"] <= 8 * stored and stored < KERNEL  # compressed, and some kB of names
    resumed = run(simulation(data, "lora"), test, Schedule(2, 1, 1), workdir=tmp_path)
    same(sim.variables(resumed.state), sim.variables(unbroken))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["backbone_bytes"] == FROZEN["lora"]
    assert summary["uplink_bytes"] == 2 * 4 * SENT["lora"] and summary["saving"] == 1.0
    assert f"backbone      {FROZEN['lora']:,} a client, once" in capsys.readouterr().out


def test_a_run_that_freezes_nothing_says_nothing_of_a_backbone(data, capsys):
    test = {name: column[:8] for name, column in data.columns.items()}
    outcome = run(simulation(data, "none"), test, Schedule(1, 1, 1))
    assert "backbone_bytes" not in outcome.summary
    assert "backbone" not in capsys.readouterr().out


def temporary_bytes(sim):
    """Of the compiled program of a call of one round."""
    begun = sim.begin(sim.init(), 1)
    arguments = (sim.columns, begun.carried, begun.settings), begun.share
    return jax.jit(sim.programs.call()).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_clients_at_once_share_one_copy(data):
    at_once = lambda adapter, size: simulation(data, adapter, cohort_size=size, executor=vmap())
    few, many = temporary_bytes(at_once("lora", 4)), temporary_bytes(at_once("lora", CLIENTS))
    # A client has its own factors, their gradients and so on, a few times, and they are small beside the kernel.
    assert (many - few) / (CLIENTS - 4) < KERNEL / 2
    # A kernel that is trained is there for each.
    assert temporary_bytes(at_once("none", CLIENTS)) >= CLIENTS * KERNEL


def test_workers_that_keep_their_models_keep_and_send_what_is_trained(data):
    sim = simulation(data, "lora", lambda local: fda(local, 0.0), cohort_size=CLIENTS)
    start = sim.init()
    state, line = sim.run_round(start)
    one = jax.tree.map(lambda x: x[0], state.clients.arrays())
    assert trees.num_bytes(one) == SENT["lora"] + 4  # and the number of its steps
    # The first model down, then at each of two steps every model up and the mean down.
    assert line["uplink_bytes"] == 2 * CLIENTS * SENT["lora"]
    assert line["downlink_start_bytes"] == CLIENTS * SENT["lora"]
    same(sim.variables(state).frozen, sim.variables(start).frozen)


def test_seeds_side_by_side_have_backbones_of_their_own(first, data):
    one = simulation(data, "lora", seed=0)
    two = simulation(data, "lora", seed=1, beside=one)
    states, lines = side_by_side([one, two])([one.init(), two.init()], [2, 2])
    assert lines[0][-1]["uplink_bytes"] == first[3][-1]["uplink_bytes"]
    alone = two.run_rounds(two.init(), 2)[0]
    for sim, state, want in ((one, states[0], first[2]), (two, states[1], alone)):
        got, want = (trees.named_leaves(sim.variables(s).params) for s in (state, want))
        for name, leaf in got.items():
            # Four steps on numbers of size 1 in float32; the programs may sum in another order.
            np.testing.assert_allclose(leaf, want[name], atol=1e-5, rtol=0, err_msg=name)
    kernels = [sim.variables(state).frozen["first"]["kernel"] for sim, state in zip((one, two), states, strict=True)]
    assert np.abs(np.asarray(kernels[0]) - np.asarray(kernels[1])).max() > 0.01
    test = dict(data.columns)
    one.evaluate(states[0], test)  # compiled for the first, as in a run
    loss = measuring(Run(two), test)(states[1])["test_loss"]
    assert loss == pytest.approx(two.evaluate(alone, test)["test_loss"], abs=1e-4)
    assert abs(loss - one.evaluate(states[1], test)["test_loss"]) > 0.01  # on the other's backbone


def test_gradients_taken_otherwise_see_it_too(first, data):
    sim = simulation(data, "lora", gradient=noisy_sgd(1e12))  # next to no noise
    state, _ = sim.run_rounds(sim.init(), 2)
    got, want = (trees.named_leaves(sim.variables(s).params) for s in (state, first[2]))
    for name, leaf in got.items():
        np.testing.assert_allclose(leaf, want[name], atol=1e-3, rtol=0, err_msg=name)
