"""Federated LoRA merged exactly: effective kernels, bytes, frozen leaves; against the mean of what clients computed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fedjax8 import paths, trees
from fedjax8.adapters.lora import lora, merge
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fedlora import fedlora
from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.executors.chunked import chunked
from fedjax8.executors.vmap import vmap
from fedjax8.local import local_training
from fedjax8.models.linen import from_linen

K, HIDDEN, R, CLASSES = 4, 5, 2, 3
CLIENTS = 3
PAIR = R * (K + HIDDEN)
HEAD = (HIDDEN + 1) * CLASSES


class Net(nn.Module):
    """A layer to adapt and a head."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES, name="head")(nn.tanh(nn.Dense(HIDDEN, name="first")(x)))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    owners = np.repeat(np.arange(CLIENTS), [2, 4, 6])
    columns = {"x": rng.normal(size=(12, K)).astype(np.float32), "y": rng.integers(0, CLASSES, 12).astype(np.int32)}
    return FederatedData.from_owners(columns, owners, CLIENTS)


def run(make, data, rounds=2, learn="both", executor=None):
    """(simulation, states after each round, all metrics) of training in full batches with a large step."""
    model = lora(from_linen(Net()), R, alpha=4.0, targets="first", learn=learn)
    local = local_training(model, optax.sgd(0.5), batch_plan(6, steps=3))
    sim = simulate(
        make(local), data, cohort_size=CLIENTS, uplink=none(), downlink=none(), executor=executor or chunked(1)
    )
    states, lines = [sim.init()], []
    for _ in range(rounds):
        state, line = sim.run_round(states[-1])
        states.append(state)
        lines.append(line)
    return sim, states, lines


def merged(sim, state):
    return trees.named_leaves(merge(sim.variables(state)).params)


@pytest.fixture(scope="module")
def runs(data):
    makers = {
        "stack": lambda local: fedlora(local, "stack"),
        "residual": lambda local: fedlora(local, "residual"),
        "mean": fedavg_fixed,
    }
    return {name: run(make, data) for name, make in makers.items()}


def fedavg_fixed(local):
    return fedavg(local, model_state="fixed")


def trained_by_hand(kernel, bias, factors, head, rows):
    """(A, B, head kernel, head bias) of one client after three steps of size 0.5 on all its rows."""

    def loss(trained):
        a, b, out, out_bias = trained
        hidden = jnp.tanh(rows["x"] @ kernel + 2.0 * (rows["x"] @ a) @ b + bias)  # alpha / r = 2
        logits = jax.nn.log_softmax(hidden @ out + out_bias)
        return -jnp.mean(logits[jnp.arange(len(rows["y"])), rows["y"]])

    trained, step = (*factors, *head), jax.jit(jax.grad(loss))
    for _ in range(3):
        trained = jax.tree.map(lambda x, g: x - 0.5 * g, trained, step(trained))
    return [np.asarray(x, np.float64) for x in trained]


def ends_of_round(sim, state, factors, data):
    """What each client ends a round with that starts from `state`, and its share of all rows."""
    found = sim.variables(state)
    first, head = paths.whole(found).params["first"], found.params["head"]
    for i in range(CLIENTS):
        places = data.rows_at(np.arange(data.sizes[:i].sum(), data.sizes[: i + 1].sum()))
        rows = {name: column[places] for name, column in data.columns.items()}
        yield (
            data.sizes[i] / 12,
            trained_by_hand(first["kernel"], first["bias"], factors, (head["kernel"], head["bias"]), rows),
        )


@pytest.mark.parametrize("merging", ["stack", "residual"])
def test_the_kernel_in_use_becomes_the_mean_of_those_that_clients_ended_with(merging, runs, data):
    sim, states, _ = runs[merging]
    for before, after in itertools.pairwise(states):
        # The A of a stacked round was drawn in it, and stands there still.
        pair = (after if merging == "stack" else before).server.variables.params["first"]["lora"]
        factors = pair["a"], pair["b"]
        kernel = np.asarray(paths.whole(sim.variables(before)).params["first"]["kernel"], np.float64)
        head = 0.0
        for p, (a, b, out, _) in ends_of_round(sim, before, factors, data):
            kernel, head = kernel + p * 2.0 * a @ b, head + p * out
        # Three steps of size 0.5 in float32 on numbers of size 1.
        np.testing.assert_allclose(merged(sim, after)["first/kernel"], kernel, atol=2e-5, rtol=0)
        np.testing.assert_allclose(after.server.variables.params["head"]["kernel"], head, atol=2e-5, rtol=0)


def test_the_mean_of_factors_ends_elsewhere_though_it_began_alike(runs):
    ends = {name: merged(sim, states[1])["first/kernel"] for name, (sim, states, _) in runs.items()}
    assert np.abs(ends["mean"] - ends["residual"]).max() > 1e-3
    states = runs["residual"][1]
    mean = runs["mean"][1][1].server.variables.params["first"]["lora"]
    for name in "ab":
        np.testing.assert_allclose(states[1].server.variables.params["first"]["lora"][name], mean[name], atol=1e-6)


def test_bytes_are_those_of_factors_and_never_those_of_kernels(runs):
    clients_and_rounds, sizes = 2 * CLIENTS, {"pairs": 4 * PAIR, "head": 4 * HEAD}
    for name, down, pairs in (
        ("stack", sizes["head"], CLIENTS * sizes["pairs"]),
        ("residual", sizes["head"] + sizes["pairs"], (CLIENTS - 1) * sizes["pairs"]),
    ):
        line = runs[name][2][-1]
        assert line["uplink_bytes"] == clients_and_rounds * (sizes["pairs"] + sizes["head"])
        assert line["downlink_model_bytes"] == clients_and_rounds * down
        assert line["downlink_pairs_bytes"] == clients_and_rounds * pairs
        assert line["downlink_bytes"] == clients_and_rounds * (down + pairs)


def test_of_what_is_frozen_the_adapted_kernel_moves_alone_and_is_in_no_state(runs):
    for name, (sim, states, _) in runs.items():
        old, new = (trees.named_leaves(sim.variables(state).frozen) for state in (states[0], states[-1]))
        moved = {path for path, leaf in old.items() if np.any(np.asarray(new[path]) != np.asarray(leaf))}
        assert moved == (set() if name == "mean" else {"first/kernel"})
        assert all(state.server.variables.frozen == {} for state in states)


def test_clients_at_once_give_the_same_as_one_after_another(runs, data):
    sim, states, _ = run(lambda local: fedlora(local, "residual"), data, rounds=1, executor=vmap())
    want = merged(runs["residual"][0], runs["residual"][1][1])
    for name, leaf in merged(sim, states[1]).items():
        # The same three steps; sums over clients and rows in another order.
        np.testing.assert_allclose(leaf, want[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("learn", ["b", "middle"])
def test_one_factor_alone_is_refused_with_what_to_use_instead(learn, data):
    with pytest.raises(UserError, match=r"needs the adapter lora with learn='both'.*fedavg averages exactly"):
        run(lambda local: fedlora(local), data, learn=learn)


def test_unknown_merges_are_refused():
    with pytest.raises(ValueError, match="merge must be one of stack, residual; got 'mean'"):
        fedlora(None, "mean")
