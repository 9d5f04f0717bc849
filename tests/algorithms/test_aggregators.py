"""Robust aggregation, held against NumPy, points worked out by hand, and liars."""

import functools

import jax
import numpy as np
import pytest

from fedjax8.algorithms import aggregators
from fedjax8.algorithms.aggregators.krum import scores
from fedjax8.algorithms.aggregators.trimmed_mean import cuts
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.executors.loop import loop
from fedjax8.executors.pmap import pmap
from fedjax8.lookup import component_names, find
from fedjax8.numerics.order import BLOCK, over_sorted_columns, sorted_rows
from fedjax8.types import Aggregator

PACKAGE = "fedjax8.algorithms.aggregators"
FLOAT32 = {"rtol": 1e-5, "atol": 2e-6}  # sums of some tens of float32 in another order
C = 7


@functools.cache
def compiled(name, index):
    """A component's example, compiled; None where it does not combine."""
    combine = find(name, PACKAGE)(**find(name, PACKAGE).__globals__["EXAMPLES"][index]).combine
    return combine and jax.jit(combine)


EXAMPLES = [
    pytest.param(name, i, id=f"{name}-{i}")
    for name in component_names(PACKAGE)
    for i in range(len(find(name, PACKAGE).__globals__["EXAMPLES"]))
    if compiled(name, i)
]


def points(rng):
    return {"a": rng.normal(size=(C, 3)).astype(np.float32), "b": rng.normal(size=(C, 2, 2)).astype(np.float32)}


def same(got, want):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **FLOAT32), got, want)


def on_line(aggregator, *values):
    """The aggregator's result on clients of weight 1 that send one number each."""
    return float(jax.jit(aggregator.combine)({"x": np.float32(values)}, np.ones(len(values), np.float32))[0]["x"])


@pytest.mark.parametrize(("name", "index"), EXAMPLES)
def test_the_order_of_clients_does_not_matter(rng, name, index):
    sent, ones, order = points(rng), np.ones(C, np.float32), rng.permutation(C)
    shuffled = {part: x[order] for part, x in sent.items()}
    same(compiled(name, index)(shuffled, ones)[0], compiled(name, index)(sent, ones)[0])


@pytest.mark.parametrize(("name", "index"), EXAMPLES)
def test_what_all_agree_on_is_what_comes_out(rng, name, index):
    sent = points(rng)
    alike = {part: np.repeat(x[:1], C, axis=0) for part, x in sent.items()}
    same(compiled(name, index)(alike, np.ones(C, np.float32))[0], {part: x[0] for part, x in sent.items()})


@pytest.mark.parametrize(("name", "index"), [e for e in EXAMPLES if e.id != "geometric_median-0"])  # too few steps
def test_moving_everyone_moves_the_result_as_far(rng, name, index):
    sent, ones = points(rng), np.ones(C, np.float32)
    moved = {part: x + np.float32(2) for part, x in sent.items()}
    before = compiled(name, index)(sent, ones)[0]
    same(compiled(name, index)(moved, ones)[0], {part: x + 2 for part, x in before.items()})


@pytest.mark.parametrize(("name", "index"), EXAMPLES)
def test_a_client_without_weight_is_as_one_that_is_not_there(rng, name, index):
    sent, weights = points(rng), np.ones(C, np.float32)
    weights[[1, 4]] = 0
    there = np.flatnonzero(weights)
    few = {part: x[there] for part, x in sent.items()}
    sent = {part: np.where(weights.reshape(-1, *(1,) * (x.ndim - 1)) > 0, x, 0) for part, x in sent.items()}
    same(compiled(name, index)(sent, weights)[0], compiled(name, index)(few, weights[there])[0])


@pytest.mark.parametrize(("name", "index"), EXAMPLES)
def test_nobody_at_all_gives_zeros_and_not_nan(rng, name, index):
    sent = jax.tree.map(np.zeros_like, points(rng))
    same(compiled(name, index)(sent, np.zeros(C, np.float32))[0], {"a": np.zeros(3), "b": np.zeros((2, 2))})


def test_columns_are_sorted_as_numpy_sorts_them(rng):
    for rows in (1, 5, 8):
        x = rng.normal(size=(rows, 3)).astype(np.float32)
        np.testing.assert_array_equal(jax.jit(sorted_rows)(x), np.sort(x, axis=0))
    wide = rng.normal(size=(5, 2 * BLOCK + 7)).astype(np.float32)
    got = jax.jit(functools.partial(over_sorted_columns, lambda block: block[3] - block[0]))(wide)
    ascending = np.sort(wide, axis=0)
    np.testing.assert_array_equal(got, ascending[3] - ascending[0])


def test_median_and_trimmed_mean_are_numpys(rng):
    sent, ones = points(rng), np.ones(C, np.float32)
    same(compiled("median", 0)(sent, ones)[0], {part: np.median(x, axis=0) for part, x in sent.items()})
    middle = {part: np.sort(x, axis=0)[1:-1].mean(axis=0) for part, x in sent.items()}  # floor(0.2 * 7) = 1 at each end
    same(compiled("trimmed_mean", 0)(sent, ones)[0], middle)


def test_median_and_trimmed_mean_by_hand():
    assert on_line(aggregators.median(), 1, 2, 3, 4, 100) == 3
    assert on_line(aggregators.median(), 1, 2, 4, 100) == 3  # an even number of clients
    assert on_line(aggregators.trimmed_mean(0.2), 1, 2, 3, 4, 100) == pytest.approx(3, rel=1e-6)
    assert on_line(aggregators.trimmed_mean(0.0), 1, 2, 3, 4, 100) == pytest.approx(22, rel=1e-6)


def test_a_share_is_cut_as_exact_arithmetic_would_cut_it():
    assert int(0.29 * 100) == 28
    assert cuts(0.29, 100)[[0, 3, 4, 100]].tolist() == [0, 0, 1, 29]


def test_krum_by_hand():
    """Each client's two nearest others: 0.1's are 0 and 0.25, at 0.01 + 0.0225."""
    sent, ones = {"x": np.float32([0, 0.1, 0.25, 0.4, 10])}, np.ones(5, np.float32)
    got = scores(sent, ones, byzantine=1)
    np.testing.assert_allclose(got[:4], [0.0725, 0.0325, 0.045, 0.1125], rtol=1e-4)  # differences of squares near 0.1
    assert on_line(aggregators.krum(1), *sent["x"]) == pytest.approx(0.1)
    assert on_line(aggregators.krum(1, keep=2), *sent["x"]) == pytest.approx(0.175)
    assert on_line(aggregators.krum(1, keep=None), *sent["x"]) == pytest.approx(0.1875)


def test_krum_scores_are_those_of_a_loop(rng):
    sent = points(rng)
    flat = np.float64(np.concatenate([sent["a"], sent["b"].reshape(C, -1)], axis=1))
    want = [sum(sorted(((flat[i] - flat[j]) ** 2).sum() for j in range(C) if j != i)[: C - 2 - 2]) for i in range(C)]
    np.testing.assert_allclose(scores(sent, np.ones(C, np.float32), byzantine=2), want, rtol=1e-5)


def test_a_liar_beyond_float32_does_not_blind_krum():
    """Its squares overflow; distances among the others keep their digits."""
    assert on_line(aggregators.krum(1), 0, 0.1, 0.25, 0.4, 3e38) == pytest.approx(0.1)
    assert on_line(aggregators.krum(1), 0, 0.1, 0.25, 0.4, 1e9) == pytest.approx(0.1)


def test_the_geometric_median_is_that_of_many_plain_steps(rng):
    x, p = rng.normal(size=(9, 4)), rng.uniform(0.5, 2.0, size=9)
    z = np.average(x, axis=0, weights=p)
    for _ in range(2000):
        pull = p / np.linalg.norm(x - z, axis=1)
        z = pull @ x / pull.sum()
    rule = aggregators.geometric_median(500)
    got = jax.jit(rule.combine)({"x": np.float32(x)}, np.float32(p))[0]["x"]
    np.testing.assert_allclose(got, z, atol=1e-5)


def test_the_geometric_median_by_hand():
    triangle = np.float32([[1, 0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]]) + 5
    combine = jax.jit(aggregators.geometric_median(60).combine)
    np.testing.assert_allclose(combine({"x": triangle}, np.ones(3, np.float32))[0]["x"], [5, 5], atol=1e-5)
    heavy = combine({"x": triangle}, np.float32([10, 1, 1]))[0]["x"]  # more than half of all weight: the point itself
    np.testing.assert_allclose(heavy, triangle[0], atol=0.05)


@pytest.mark.parametrize("far", [1e6, 1e30])
def test_rules_with_a_breakdown_point_hold_where_the_mean_does_not(far):
    values = [0.9, 1.0, 1.05, 1.1, far]
    assert np.mean(values) > 1e5
    for rule in (
        aggregators.median(),
        aggregators.trimmed_mean(0.2),
        aggregators.krum(1),
        aggregators.krum(1, keep=None),
        aggregators.geometric_median(),
    ):
        assert 0.9 <= on_line(rule, *values) <= 1.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: aggregators.trimmed_mean(0.5),
        lambda: aggregators.krum(-1),
        lambda: aggregators.krum(1, keep=0),
        lambda: aggregators.geometric_median(0),
        lambda: aggregators.norm_bound(0.0),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"must|need"):
        make()


# In rounds, on quadratics: a client with optimum b moves by 0.1 (b - x) in one step.


def run(toys, aggregate, data, rounds=1, *, make=fedavg, executor=None, **settings):
    sim = toys.build(functools.partial(make, aggregate=aggregate, **settings), data, steps=1, executor=executor)
    state = sim.init()
    for _ in range(rounds):
        state, metrics = sim.run_round(state)
    return float(sim.variables(state).params["x"]), metrics


def test_a_norm_bound_shortens_what_is_longer_and_says_so():
    admit = aggregators.norm_bound(2.0).admit
    half = np.sqrt(2.0)  # of a change that no float32 is as long as, 2 are left
    for sent, want, shortened in (
        ([3.0, 4.0], [1.2, 1.6], 1),
        ([1.1, 1.6], [1.1, 1.6], 0),
        ([3e38, 3e38], [half] * 2, 1),
    ):
        change, admitted, report = admit({"x": np.float32(sent)})
        np.testing.assert_allclose(change["x"], want, rtol=1e-5)  # norms are upper bounds, see `privacy.norms`
        assert np.linalg.norm(np.float64(change["x"])) <= 2
        assert admitted and report == {"bounded_clients": shortened}


def test_a_norm_bound_may_leave_out_and_name_what_is_longer(toys):
    data = toys.clients([1.0] * 5, [1.0, -2.0, 40.0, np.nan, 2.0])  # moves of 0.1, -0.2, 4, none and 0.2
    x, metrics = run(toys, aggregators.norm_bound(0.3, exclude=True, then=aggregators.median()), data)
    assert x == pytest.approx(0.1, rel=1e-5)
    assert (metrics["excluded"], metrics["excluded_clients"], metrics["clients"]) == (2, [2, 3], 3)
    assert metrics["uplink_bytes"] == 20


@pytest.mark.parametrize("payload", ["params", "update"])
def test_rules_see_changes_whatever_clients_send(toys, payload):
    data = toys.clients([1.0] * 4, [1.0, 3.0, 8.0, 1000.0], [1, 2, 3, 1])  # moves of 0.1, 0.3, 0.8, 100
    rule = aggregators.norm_bound(0.4, then=aggregators.median())
    x, metrics = run(toys, rule, data, payload=payload)
    assert x == pytest.approx((0.3 + 0.4) / 2, rel=1e-5)
    assert metrics["bounded_clients"] == 2


def test_devices_do_not_matter(toys):
    data = toys.clients([1.0] * 5, [1.0, 2.0, 4.0, 8.0, np.inf])
    alone, together = (run(toys, aggregators.krum(1), data, 3, executor=e) for e in (loop(), pmap(1, 2)))
    assert alone[0] == pytest.approx(together[0], rel=1e-6)
    assert alone[1]["excluded_clients"] == together[1]["excluded_clients"] == [4]


def test_the_mean_as_an_aggregator_is_no_aggregator_bit_for_bit(toys):
    data = toys.clients([1.0, 4.0, 2.0], [0.3, 1.7, -1.0], [1, 2, 3])
    assert run(toys, aggregators.mean(), data, 5) == run(toys, None, data, 5)


def test_a_variate_is_aggregated_with_its_model(toys):
    make = functools.partial(scaffold, learning_rate=toys.LEARNING_RATE)
    data = toys.clients([1.0] * 5, [1.0, 1.0, 1.0, 1.0, 1e6])
    x, _ = run(toys, aggregators.median(), data, 80, make=make)
    assert x == pytest.approx(1.0, abs=1e-3)


def test_an_aggregator_of_the_wrong_kind_is_none():
    assert all(isinstance(find(name, PACKAGE)(), Aggregator) for name in component_names(PACKAGE))
