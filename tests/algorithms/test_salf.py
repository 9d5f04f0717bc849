"""SALF: both rules by their formulas, depths by law and by the clock, and the bytes of the layers that are sent."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.salf import are_stragglers, layers_of, salf, unreached
from fedjax8.errors import UserError
from fedjax8.executors.vmap import vmap
from fedjax8.systems import Speeds, SystemModel
from fedjax8.types import Model, Variables

LAYERS, RATE = 4, 0.1


def stack() -> Model:
    """Four layers of one number each, whose sum times b is the loss: every step moves each of them by -0.1 b."""

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        total = sum(layer["x"] for layer in variables.params.values())
        return jnp.broadcast_to(total, batch["b"].shape), variables.state

    return Model(
        init=lambda key, batch: Variables({f"l{i}": {"x": jnp.float32(0)} for i in range(LAYERS)}, {}),
        apply=apply,
        loss=lambda y, batch: y * batch["b"],
        metrics=lambda y, batch: {},
    )


def build(toys, b, *, rows=None, system=None, **settings):
    make = functools.partial(salf, **settings)
    data = toys.clients([1.0] * len(b), b, rows)
    return toys.build(make, data, model=stack(), epochs=1, system=system, executor=vmap())


def params(sim, state):
    return np.array([float(sim.variables(state).params[f"l{i}"]["x"]) for i in range(LAYERS)])


def sent(state):
    """Messages of each layer, from the input to the output."""
    found = {c.part.rpartition(":")[2]: n for c, n in state.ledger.sent.items() if c.direction == "up" and c.part}
    return np.array([found[str(i)] for i in range(LAYERS)])


@pytest.mark.parametrize("settings", [{"stragglers": 0.0}, {"stragglers": 0.0, "rule": "all_clients"}])
def test_clients_that_reach_the_input_make_it_fedavg(toys, settings):
    data = toys.clients([1.0] * 3, [1.0, 2.0, 4.0], [1, 2, 3])
    plain = functools.partial(fedavg, payload="update", weighting="uniform")
    ways = [
        toys.build(make, data, model=toys.two_parts(), epochs=1)
        for make in (functools.partial(salf, **settings), plain)
    ]
    (mine, _), (theirs, _) = (sim.run_rounds(sim.init(), 3) for sim in ways)
    for part, leaf in (("body", "x"), ("head", "h")):
        got, want = (sim.variables(state).params[part][leaf] for sim, state in zip(ways, (mine, theirs), strict=True))
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("rule", ["corrected", "all_clients"])
def test_equal_clients_move_each_layer_by_the_rule_of_their_number(toys, rule):
    """Five clients with the update u: u / (1 - p_l), p_l = (1 - l/4)^5, where anyone reached l, or u |U_l| / 5."""
    sim = build(toys, [2.0] * 5, rule=rule, stragglers=1.0)
    state, update = sim.init(), -RATE * 2.0
    for _ in range(6):
        before, was = params(sim, state), sent(state) if state.round else 0
        state, line = sim.run_round(state)
        reached = sent(state) - was
        assert reached[-1] == 5 and np.all(np.diff(reached) >= 0)
        missed = (1 - np.arange(1, 5) / 4) ** 5
        expected = np.where(reached > 0, update / (1 - missed), 0.0) if rule == "corrected" else update * reached / 5
        np.testing.assert_allclose(params(sim, state) - before, expected, rtol=1e-5, atol=1e-7)
        assert line["layers_reached"] == pytest.approx(reached.sum() / 20)
    assert line["uplink_bytes"] == 6 * 5 + 4 * sent(state).sum()


@pytest.mark.parametrize("rule", ["corrected", "all_clients"])
def test_over_random_depths_one_rule_gives_the_full_mean_and_the_other_its_share(toys, rule):
    """4096 rounds of five clients; 5 standard errors of the sum, whose deviation a round is that of the sample."""
    b, rounds, moves = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 4096, []
    sim = build(toys, b, rule=rule, stragglers=1.0)
    state, at = sim.init(), np.zeros(LAYERS)
    while state.round < rounds:
        state, _ = sim.run_rounds(state, 64)
        moves.append((params(sim, state) - at) / 64)
        at = params(sim, state)
    mean, error = np.mean(moves, 0), np.std(moves, 0, ddof=1) / np.sqrt(len(moves))
    share = np.ones(LAYERS) if rule == "corrected" else np.arange(1, 5) / 4
    assert np.all(np.abs(mean - share * -RATE * b.mean()) <= 5 * error + 1e-4)  # float32 at the size of the sum
    assert np.asarray(unreached(5, LAYERS))[0] == pytest.approx(0.2373, abs=5e-5)


def test_stragglers_are_the_same_share_of_all_clients_in_every_round():
    chosen = np.asarray(are_stragglers(jnp.arange(30), 30, 0.9, 0))
    assert chosen.sum() == 27
    assert not np.array_equal(chosen, np.asarray(are_stragglers(jnp.arange(30), 30, 0.9, 1)))


def of_steps(*seconds):
    return SystemModel(
        lambda seed, number, ids: Speeds(np.float64(seconds)[ids], *[np.full(len(ids), 1e9)] * 2, 0.0 * ids)
    )


@pytest.mark.parametrize("rows", [1, 2])
def test_by_the_clock_a_client_sends_what_its_backward_pass_reached(toys, rows):
    """Steps of 3, 6, 4 and 12 s in 3 s: a third forward, then a layer each 0.5, 1, 2/3 s: 4, 1, 2 and 0 layers; with
    two steps, and twice the time, as many."""
    b = [1.0, 2.0, 3.0, 4.0]
    sim = build(
        toys, b, rows=[rows] * 4, depth="clock", deadline=3.0 * rows + 1e-4, system=of_steps(3.0, 6.0, 4.0, 12.0)
    )
    state, line = sim.run_round(sim.init())
    assert sent(state).tolist() == [1, 1, 2, 3]
    assert (line["clients"], line["uplink_bytes"]) == (4, 4 + 4 * 7)
    assert line["simulated_seconds"] == pytest.approx(3.0 * rows, abs=1e-3)
    q = np.array([1, 1, 2, 3]) / 4
    means = np.array([1.0, 1.0, (1 + 3) / 2, (1 + 2 + 3) / 3])
    np.testing.assert_allclose(params(sim, state), -RATE * rows * means / (1 - (1 - q) ** 4), rtol=1e-5)


def test_with_time_for_all_the_clock_gives_fedavg(toys):
    sim = build(toys, [1.0, 3.0], depth="clock", deadline=100.0, system=of_steps(1.0, 2.0))
    state, line = sim.run_round(sim.init())
    np.testing.assert_allclose(params(sim, state), -RATE * 2.0, rtol=1e-6)
    assert line["simulated_seconds"] == pytest.approx(2.0, abs=1e-4)


def test_the_clock_is_needed_and_settings_that_contradict_are_refused(toys):
    with pytest.raises(UserError, match="no clock"):
        build(toys, [1.0], depth="clock", deadline=1.0)
    for wrong in ({"depth": "clock"}, {"deadline": 1.0}, {"depth": "clock", "deadline": 1.0, "reach": "known"}):
        with pytest.raises(ValueError, match="clock"):
            build(toys, [1.0], **wrong)


def test_layers_are_in_the_order_of_their_numbers_or_of_the_patterns():
    tree = {f"Dense_{i}": {"kernel": jnp.ones(1), "bias": jnp.ones(1)} for i in (0, 2, 10)} | {
        "head": {"x": jnp.ones(1)}
    }
    found = [of_layer[0].split("/")[0] for of_layer in layers_of(tree, ())]
    assert found == ["Dense_0", "Dense_2", "Dense_10", "head"]
    assert [len(of_layer) for of_layer in layers_of(tree, ("head", "*bias", "Dense_*"))] == [1, 3, 3]
    with pytest.raises(UserError, match="no pattern matches"):
        layers_of(tree, ("head",))
