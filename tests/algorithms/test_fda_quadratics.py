"""FDA on models of one number, whose drifts, variances and momenta can be worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8.algorithms.fda import fda
from fedjax8.algorithms.monitors import exact, gm, periodic
from fedjax8.algorithms.monitors.base import Monitor

B = np.array([1.0, -2.0, 4.0])
STEPS = 8
FLOAT32 = 2e-6
ROWS = ([0.0, 1.0, 5.0], [2.0, -1.0, 0.5], [3.0, 4.0, -2.0], [-3.0, 1.5, 2.5])


def run(sim, rounds=1, theta=None):
    """(state, metrics of the last round, each worker) after some rounds; `theta` in the place of the first threshold,
    which needs no other program."""
    state = sim.init()
    if theta is not None:
        state = state._replace(server=state.server._replace(threshold=jnp.float32(theta)))
    lines = []
    for _ in range(rounds):
        state, line = sim.run_round(state)
        lines.append(line)
    workers = jax.tree.map(np.asarray, state.clients.read(np.arange(lines[0]["clients"])))["algorithm"]
    return state, lines, workers


def build(toys, data=None, **settings):
    building = ("optimizer", "executor", "steps", "batch_size")
    own = {name: settings.pop(name) for name in building if name in settings}
    data = toys.clients(np.ones(len(B)), B) if data is None else data
    return toys.build(functools.partial(fda, **settings), data, **({"steps": STEPS} | own))


@pytest.mark.parametrize("how", ["keep", "reset", "average"])
def test_momenta_are_kept_reset_or_averaged_at_a_synchronization(toys, how):
    """m <- m / 2 + (x - b), x <- x - 0.1 m on each worker, and the mean of all x after each of two steps."""
    sim = build(toys, theta=0.0, optimizer_state=how, optimizer=optax.sgd(0.1, momentum=0.5), steps=2)
    state, lines, workers = run(sim)
    x, m = 0.0, np.zeros(len(B))
    for _ in range(2):
        m = m / 2 + (x - B)
        x = np.mean(x - 0.1 * m)
        m = {"keep": m, "reset": 0 * m, "average": np.full(len(B), m.mean())}[how]
    assert lines[0]["syncs"] == 2
    assert float(state.server.common.params["x"]) == pytest.approx(x, abs=FLOAT32)
    (found,) = (leaf for leaf in jax.tree.leaves(workers.optimizer) if leaf.dtype == np.float32)
    np.testing.assert_allclose(found, m, atol=FLOAT32)


def test_a_worker_that_missed_a_step_has_no_weight_at_the_next_synchronization(toys):
    data = toys.clients([np.nan, 1.0, 1.0], B)
    state, lines, _ = run(build(toys, data, theta=0.0, steps=1))
    assert lines[0]["excluded"] == 1
    assert float(state.server.common.params["x"]) == pytest.approx(0.1 * (B[1] + B[2]) / 2, abs=FLOAT32)


def test_workers_synchronize_beyond_the_threshold_and_not_at_it(toys):
    always_one = Monitor(lambda reduced, step: jnp.float32(1.0))
    sim = build(toys, theta=1.0, monitor=always_one)
    assert run(sim)[1][0]["syncs"] == 0
    assert run(sim, theta=np.nextafter(np.float32(1), np.float32(0)))[1][0]["syncs"] == STEPS


def test_without_synchronizations_workers_train_alone_and_their_mean_is_evaluated(toys):
    sim = build(toys, theta=float("inf"))
    state, lines, workers = run(sim, 2)
    alone = B * (1 - 0.9 ** (2 * STEPS))
    assert lines[-1]["syncs"] == 0 and "uplink_monitor_bytes" not in lines[-1]
    np.testing.assert_allclose(workers.variables.params["x"], alone, atol=5 * FLOAT32)
    assert float(sim.variables(state).params["x"]) == pytest.approx(alone.mean(), abs=5 * FLOAT32)


def test_weights_by_drift_are_squares_of_what_each_worker_moved(toys):
    state, _, _ = run(build(toys, theta=0.0, weighting="drift", steps=1))
    drifts = 0.1 * B
    assert float(state.server.common.params["x"]) == pytest.approx(np.sum(drifts**3) / np.sum(drifts**2), abs=FLOAT32)


def test_a_period_and_every_third_step_are_counted_over_rounds(toys):
    assert [line["syncs"] for line in run(build(toys, theta=1.0, monitor=periodic(3)), 2)[1]] == [2, 5]
    _, lines, _ = run(build(toys, theta=0.9, monitor=gm(), check_every=3), 3)
    checks = 3 * STEPS // 3
    assert lines[-1]["uplink_monitor_bytes"] == lines[-1]["downlink_decision_bytes"] == len(B) * checks
    assert lines[-1]["compat_monitor_bytes"] == len(B) * checks // 8
    assert 0 < lines[-1]["syncs"] < checks


def test_the_variance_is_within_theta_where_nobody_synchronizes_and_more_theta_means_no_more_of_it(toys):
    """Rows of their own, drawn at random: the variance is that of four different ways."""
    settings = {"monitor": exact(), "measure_variance": True, "record_steps": True}
    sim, syncs = build(toys, toys.with_rows(ROWS), theta=0.1, **settings), []
    for theta in (0.05, 0.1, 0.2):
        _, lines, _ = run(sim, 2, theta)
        truth, synchronized = (np.concatenate([line[key] for line in lines]) for key in ("variances", "synchronized"))
        assert np.all(truth[synchronized == 0] <= theta * (1 + 1e-5))
        syncs.append(lines[-1]["syncs"])
    assert 0 < syncs[2] <= syncs[1] <= syncs[0] < 2 * STEPS
