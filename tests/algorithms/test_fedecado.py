"""FedECADO: its equilibrium, a round solved as one linear system in NumPy, its solver against a fine integration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.algorithms.fedecado import FLOWS, fedecado, solve

FLOAT32 = 2e-6
A, B, ROWS = np.array([1.0, 4.0, 2.0]), np.array([0.0, 1.0, -2.0]), np.array([1, 3, 2])


def circuit(x, flows, ends, times, step, inductance, curvature):
    """(x, flows) after one step of backward Euler over all unknowns x, I_i, x_i, by a general linear solver."""
    m = len(flows)
    matrix, right = np.zeros((2 * m + 1, 2 * m + 1)), np.zeros(2 * m + 1)
    matrix[0, 0], matrix[0, 1 : m + 1], right[0] = 1, -step, x
    for i in range(m):
        own, state = 1 + i, 1 + m + i
        matrix[own, own], matrix[own, 0], matrix[own, state] = inductance / step, 1, -1
        right[own] = inductance / step * flows[i]
        # x_i+ = Gamma_i - (I_i+ - I_i) / G
        sensitivity = 1 / step + curvature
        matrix[state, state], matrix[state, own] = 1, 1 / sensitivity
        right[state] = x + (ends[i] - x) * step / times[i] + flows[i] / sensitivity
    solved = np.linalg.solve(matrix, right)
    return solved[0], solved[1 : m + 1]


def flows_of(state):
    return np.asarray(state.clients.arrays()["algorithm"].flow["x"])


def test_it_ends_at_the_optimum_with_flows_that_hold_each_client_there(toys):
    """Q2: x = 0.8 in spite of five local steps; I_i = -q_i f_i'(0.8), K = 2 times those of weights p_i = 1/2."""
    make = functools.partial(fedecado, learning_rate=toys.LEARNING_RATE)
    sim = toys.build(make, toys.q2(), steps=5, rounds_per_call=64)
    state, lines = sim.run_rounds(sim.run_rounds(sim.init(), 64)[0], 64)
    assert float(sim.variables(state).params["x"]) == pytest.approx(0.8, abs=1e-5)
    np.testing.assert_allclose(flows_of(state) / 2, [-0.4, 0.4], atol=1e-5)
    # Of one number: x, the share, b and a down; u and T up.
    assert lines[-1]["uplink_bytes"] == 128 * 2 * 8 and lines[-1]["downlink_bytes"] == 128 * 2 * 16
    assert {c.name for c in state.ledger.sent} == {"model", FLOWS}


def test_a_round_is_the_solution_of_one_linear_system(toys):
    """Clients of 1, 3 and 2 rows, which train for as long; a tolerance that one step of the whole window meets."""
    inductance, curvature = 0.5, 3.0
    make = functools.partial(
        fedecado, learning_rate=toys.LEARNING_RATE, inductance=inductance, curvature=curvature, tolerance=1e6
    )
    sim = toys.build(make, toys.clients(A, B, ROWS), epochs=1, start=2.0)
    x, flows, state = 2.0, np.zeros(3), sim.init()
    shares, times = ROWS / ROWS.mean(), toys.LEARNING_RATE * ROWS
    for _ in range(4):
        ends = np.full(3, x)
        for i, steps in enumerate(ROWS):
            for _ in range(steps):
                ends[i] -= toys.LEARNING_RATE * (shares[i] * A[i] * (ends[i] - B[i]) + flows[i])
        x, flows = circuit(x, flows, ends, times, times.max(), inductance, curvature)
        state, line = sim.run_round(state)
        assert line["solver_steps"] == 1 and line["window"] == pytest.approx(times.max(), rel=1e-6)
        assert float(sim.variables(state).params["x"]) == pytest.approx(x, abs=10 * FLOAT32)
        np.testing.assert_allclose(flows_of(state), flows, atol=10 * FLOAT32)
        assert float(state.server.total["x"]) == pytest.approx(flows.sum(), abs=10 * FLOAT32)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-4])
def test_the_error_of_the_solver_follows_its_tolerance(tolerance):
    """Against 4,000 steps of Runge and Kutta for x' = S, S' = (sum of Gamma_i - m x) / L."""
    x0, s0, speeds, duration, inductance = 1.0, -0.3, np.array([0.5, -2.0, 0.7]), 0.8, 0.25
    slope = lambda t, y: np.array([y[1], (3 * (x0 - y[0]) + t * speeds.sum()) / inductance])
    y, step = np.array([x0, s0]), duration / 4000
    for t in np.arange(4000) * step:
        k1 = slope(t, y)
        k2 = slope(t + step / 2, y + step / 2 * k1)
        k3 = slope(t + step / 2, y + step / 2 * k2)
        y = y + step / 6 * (k1 + 2 * k2 + 2 * k3 + slope(t + step, y + step * k3))
    number = lambda value: {"x": jnp.float32(value)}
    end = solve(
        *map(number, (x0, x0, s0, speeds.sum())),
        jnp.float32(3),
        jnp.float32(duration),
        inductance=inductance,
        curvature=1e9,  # so stiff that clients do not answer to flows
        tolerance=tolerance,
    )
    # Errors of single steps add up and do not grow in the norm of the circuit's energy, sqrt(3 / L) = 3.5 of this one.
    found = np.abs([float(end.center["x"]) - y[0], float(end.total["x"]) - y[1]])
    assert np.all(found <= 3.5 * int(end.steps) * tolerance)
    assert 4 < int(end.steps) < 256
    assert float(end.time) == np.float32(duration)


def test_paths_that_are_straight_in_time_count_alike_however_long_a_client_trained():
    """Gamma goes through a straight path exactly: ends at any T_i give the same velocities, and so the same window."""
    slopes = np.float32([0.5, -2.0, 0.75])
    ends = []
    for times in (np.float32([1, 1, 1]), np.float32([0.25, 0.5, 2])):
        moved = slopes * times
        number = lambda value: {"x": jnp.float32(value)}
        velocities = number(np.sum(moved / times))
        end = solve(
            number(1), number(1), number(0), velocities, jnp.float32(3), jnp.float32(2),
            inductance=1.0, curvature=1.0, tolerance=1e-3,
        )  # fmt: skip
        ends.append(jax.device_get((end.center, end.total)))
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_equal_clients_have_equal_flows(toys):
    make = functools.partial(fedecado, learning_rate=toys.LEARNING_RATE)
    sim = toys.build(make, toys.clients([2.0] * 3, [1.0] * 3), steps=2)
    state = sim.init()
    for _ in range(5):
        state, _ = sim.run_round(state)
        flows = flows_of(state)
        assert flows[0] != 0
        np.testing.assert_array_equal(flows, flows[0])
        assert float(state.server.total["x"]) == pytest.approx(flows.sum(), abs=FLOAT32)


def test_flows_of_clients_that_are_not_in_a_round_stay(toys):
    data = toys.clients([1.0, 4.0, 2.0, 0.5], [0.0, 1.0, -1.0, 2.0])
    sim = toys.build(functools.partial(fedecado, learning_rate=toys.LEARNING_RATE), data, steps=3, cohort_size=2)
    state = sim.init()
    before = flows_of(state)
    for _ in range(8):
        state, _ = sim.run_round(state)
        flows = flows_of(state)
        assert np.sum(flows != before) == 2
        assert float(state.server.total["x"]) == pytest.approx(flows.sum(), abs=1e-5)
        before = flows


@pytest.mark.parametrize("settings", [{"inductance": 0.0}, {"tolerance": -1.0}, {"curvature": -1.0}])
def test_values_out_of_range_are_refused(toys, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        toys.build(functools.partial(fedecado, learning_rate=0.1, **settings), toys.q2(), steps=1)
