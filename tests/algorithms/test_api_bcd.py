"""Walking tokens on quadratics: the penalized optimum in closed form, invariants, several tokens by NumPy, bytes."""

import functools

import numpy as np
import pytest

from fedjax8 import participation, topologies
from fedjax8.algorithms.api_bcd import api_bcd
from fedjax8.algorithms.ibcd import ibcd
from fedjax8.attacks import attacked, sign_flip
from fedjax8.dropouts import Dropout, with_dropout
from fedjax8.errors import UserError
from fedjax8.executors.pmap import pmap
from fedjax8.systems import Speeds, SystemModel

A, B = np.array([1.0, 4.0, 2.0, 3.0]), np.array([0.0, 1.0, -1.0, 2.0])
FLOAT32 = 3e-6


def build(toys, make, a, b, *, steps, tokens=1, made=None, **more):
    made = participation.walk() if made is None else made
    return toys.build(make, toys.clients(a, b), steps=steps, cohort_size=tokens, participation=made, **more)


def numbers(state):
    return np.asarray(state.clients.arrays()["algorithm"].variables.params["x"], float)


def test_one_token_settles_at_the_optimum_of_the_penalized_problem(toys):
    """Q2 with tau = 1: z = 8/13, x = (4/13, 12/13), whose mean z is; not 0.8, the minimizer of the mean loss."""
    sim = build(toys, ibcd, A[:2], B[:2], steps=40)
    state = sim.init()
    for _ in range(60):
        state, line = sim.run_round(state)
        x = numbers(state)
        assert float(sim.variables(state).params["x"]) == pytest.approx(x.mean(), abs=FLOAT32)
    np.testing.assert_allclose(x, [4 / 13, 12 / 13], atol=1e-5)
    assert line["clients"] == 1 and (line["uplink_bytes"], line["downlink_bytes"]) == (0, 0)
    (channel,) = state.ledger.sent
    assert (channel.direction, channel.message_bytes, state.ledger.sent[channel]) == ("peer", 4, 60)


def test_a_larger_pull_moves_the_optimum_towards_the_minimizer_of_the_mean(toys):
    ends = []
    for tau in (1.0, 8.0):
        sim = build(toys, functools.partial(ibcd, tau=tau), A[:2], B[:2], steps=40, optimizer=None)
        state, _ = sim.run_rounds(sim.init(), 300)
        ends.append(float(sim.variables(state).params["x"]))
        # x_i = (a_i b_i + tau z) / (a_i + tau) and z = mean(x)
        a, b = A[:2], B[:2]
        assert ends[-1] == pytest.approx(np.mean(a * b / (a + tau)) / np.mean(a / (a + tau)), abs=1e-4)
    assert abs(ends[1] - 0.8) < abs(ends[0] - 0.8)


@pytest.mark.parametrize("executor", [None, pmap(1, 2)], ids=["loop", "pmap"])
@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_several_tokens_by_numpy(toys, tokens, executor):
    tau, steps, rounds = 0.5, 3, 7
    made = participation.walk(topologies.ring())
    make = functools.partial(api_bcd, tau=tau, tokens=tokens)
    sim = build(toys, make, A, B, steps=steps, tokens=tokens, made=made, executor=executor)
    state, x, z, copies = sim.init(), np.zeros(4), np.zeros(tokens), np.zeros((4, tokens))
    for number in range(rounds):
        drawn = sim.participants.drawn(number)
        for client, token in zip(drawn.ids, drawn.tokens, strict=True):
            copies[client, token] = z[token]
            center, before = copies[client].mean(), x[client]
            for _ in range(steps):
                gradient = A[client] * (x[client] - B[client]) + tokens * tau * (x[client] - center)
                x[client] -= toys.LEARNING_RATE * gradient
            z[token] += (x[client] - before) / 4
            copies[client, token] = z[token]
        state, _ = sim.run_round(state)
        np.testing.assert_allclose(numbers(state), x, atol=FLOAT32)
        np.testing.assert_allclose(np.ravel(state.server.memory["x"]), z, atol=FLOAT32)
        assert float(sim.variables(state).params["x"]) == pytest.approx(z.mean(), abs=FLOAT32)


def test_the_token_of_a_client_that_drops_out_stays_as_it_was(toys):
    never = lambda local: with_dropout(ibcd(local), Dropout(lambda key, ids: ids >= 0))
    sim = build(toys, never, A, B, steps=3)
    state, line = sim.run_round(sim.init())
    assert (line["dropped"], line["clients"]) == (1, 0) and not numbers(state).any()
    assert float(sim.variables(state).params["x"]) == 0 and sum(state.ledger.sent.values()) == 0


def test_a_move_takes_steps_and_the_uplink_of_its_client(toys):
    """Clients of 1 and 2 s a step send 4 bytes at 4 and 1 B/s: 3 + 1 s, then 6 + 4 s."""
    system = SystemModel(lambda seed, number, ids: Speeds(1.0 + ids, 1.0 + 0 * ids, 4.0 - 3.0 * ids, 0.0 * ids))
    sim = build(toys, ibcd, A[:2], B[:2], steps=3, system=system)
    _, lines = sim.run_rounds(sim.init(), 2)
    assert [line["simulated_seconds"] for line in lines] == [4.0, 14.0]


def test_what_is_not_a_walk_is_refused(toys):
    with pytest.raises(UserError, match=r"1 walking token: use --config\.participation\.name=walk"):
        build(toys, ibcd, A, B, steps=1, made=participation.uniform())
    with pytest.raises(UserError, match="cohort_size=2"):
        build(toys, functools.partial(api_bcd, tokens=2), A, B, steps=1)
    with pytest.raises(UserError, match="a token is no contribution"):
        _ = build(toys, lambda local: attacked(ibcd(local), sign_flip(0.5)), A, B, steps=1)._traced
    for settings in ({"tau": 0.0}, {"tau": float("nan")}, {"tokens": 0}):
        with pytest.raises(ValueError, match="must be"):
            build(toys, functools.partial(api_bcd, **settings), A, B, steps=1)
