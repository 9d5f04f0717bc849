"""Several rounds as one dispatch, and rows that are streamed, give what single rounds on resident rows give."""

import functools

import chex
import jax
import numpy as np
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.data.federated import FederatedData
from fedjax8.engine import feeding
from fedjax8.engine.states.client_states import DiskStates
from fedjax8.executors.loop import loop
from fedjax8.executors.pmap import pmap


def leaves(state):
    return [np.asarray(x) for x in jax.tree.leaves((state.server, state.down_states, state.clients.arrays()))]


@pytest.fixture
def data(toys):
    return toys.clients([1.0, 4.0, 2.0, 3.0, 0.5, 1.5], [0.0, 1.0, -1.0, 2.0, 3.0, 1.0], [1, 3, 2, 5, 4, 2])


def make_scaffold(local):
    return scaffold(local, learning_rate=0.1)


def run(sim, rounds, at_once, state=None):
    state, lines = sim.init() if state is None else state, []
    while state.round < rounds:
        count = min(at_once, rounds - state.round)
        state, new = sim.run_rounds(state, count, then=at_once)
        assert 1 <= len(new) <= count
        lines += new
    return state, lines


@pytest.mark.parametrize(
    ("algorithm", "executor"), [(fedavg, loop), (make_scaffold, functools.partial(pmap, 1, 2))], ids=["loop", "pmap"]
)
def test_rounds_at_once_equal_rounds_one_by_one(toys, data, algorithm, executor):
    build = functools.partial(toys.build, algorithm, data, cohort_size=3, epochs=2, seed=1)
    sim = build(executor=executor())
    single, lines = run(sim, 7, 1)
    several, same_lines = run(sim, 7, 5)
    assert [line["round"] for line in lines] == list(range(1, 8))
    assert lines == same_lines
    for a, b in zip(leaves(single), leaves(several), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_most_rounds_of_a_call_change_no_bit_where_clients_remember(toys):
    """On several devices, where the order of sums follows from where clients are: that must not depend on calls."""
    rng = np.random.default_rng(0)
    data = toys.clients(rng.uniform(0.5, 4, 24), rng.standard_normal(24), rng.integers(1, 6, 24))
    found = []
    for most in (None, 1):
        build = functools.partial(toys.build, make_scaffold, data, cohort_size=11, epochs=2, seed=1)
        state, lines = run(build(executor=pmap(1, 2), rounds_per_call=most), 9, most or 9)
        found.append((leaves(state), [line["train_loss"] for line in lines]))
    for other, losses in found[1:]:
        assert losses == found[0][1]
        for a, b in zip(other, found[0][0], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def streamed(monkeypatch):
    """Makes simulations of tests stream their rows."""
    monkeypatch.setattr(feeding, "HOST_BYTES", 0)


def test_streamed_rows_give_the_rounds_of_resident_rows_bit_for_bit(toys, data, streamed, monkeypatch):
    build = functools.partial(toys.build, fedavg, data, cohort_size=3, epochs=2, batch_size=2, executor=pmap(1, 2))
    got = run(build(), 5, 2)
    with monkeypatch.context() as patch:
        patch.setattr(feeding, "HOST_BYTES", 1 << 30)
        want = run(build(), 5, 2)
    assert got[1] == want[1]
    for a, b in zip(leaves(got[0]), leaves(want[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_cohort_larger_than_the_buffer_of_streamed_rows_still_runs(toys, streamed):
    sizes = [1, 1, 1, 60, 50, 40]  # the first cohort says nothing of those that come
    data = toys.clients([1.0] * 6, list(range(6)), sizes)
    sim = toys.build(fedavg, data, cohort_size=2, epochs=1, executor=loop())
    state, lines = run(sim, 6, 1)
    assert lines[-1]["round"] == 6 and np.isfinite(float(sim.variables(state).params["x"]))


def test_rows_without_an_order_are_taken_from_where_they_lie(toys):
    with_order = toys.clients([1.0, 4.0, 2.0], [0.0, 1.0, -1.0], [1, 3, 2])
    without = FederatedData(with_order.columns, None, with_order.starts, with_order.sizes)
    np.testing.assert_array_equal(with_order.order, np.arange(6))  # made client by client
    (a, _), (b, _) = (run(toys.build(fedavg, d, epochs=2, executor=loop()), 2, 2) for d in (with_order, without))
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_client_states_on_disk_give_the_rounds_of_states_on_the_device(toys, data, tmp_path, monkeypatch):
    build = functools.partial(toys.build, make_scaffold, data, cohort_size=3, epochs=2, executor=pmap(1, 2))
    want, _ = run(build(), 6, 2)
    defaults = {"folder": None, "limit_bytes": 0}
    monkeypatch.setattr("fedjax8.engine.states.client_states.client_states.__kwdefaults__", defaults)
    sim = build()
    state = sim.init(tmp_path / "states")
    assert isinstance(state.clients, DiskStates)
    got, _ = run(sim, 6, 2, state)
    ids = np.arange(6)
    chex.assert_trees_all_equal(got.clients.read(ids), want.clients.read(ids))
    np.testing.assert_array_equal(sim.variables(got).params["x"], sim.variables(want).params["x"])
