"""Transfers over one link end when a fluid simulation in plain Python says."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.exchange.transfers import transfers

CAPACITY = 1e6
"""One for all cases, since it is static; the others' bandwidths are drawn around it."""
EPSILON = 2.0**-23
shared = jax.jit(functools.partial(transfers, capacity=CAPACITY))
unlimited = jax.jit(transfers)


def level(bandwidths, capacity):
    """The rate that no transfer is above, by progressive filling: whoever is below the equal share keeps its own."""
    left, rest = capacity, list(bandwidths)
    while rest and any(b <= left / len(rest) for b in rest):
        slow = [b for b in rest if b <= left / len(rest)]
        left, rest = left - sum(slow), [b for b in rest if b not in slow]
    return left / len(rest) if rest else math.inf


def fluid(start, num_bytes, bandwidth, active, capacity):
    """(ends, peak) by events, in float64."""
    start, left, bandwidth = ([float(x) for x in values] for values in (start, num_bytes, bandwidth))
    end, peak = list(start), 0.0
    pending = {i for i in range(len(start)) if active[i] and left[i] > 0}
    now = min((start[i] for i in pending), default=0.0)
    while pending:
        going = [i for i in pending if start[i] <= now]
        share = level([bandwidth[i] for i in going], capacity)
        rate = {i: min(bandwidth[i], share) for i in going}
        ends = [now + left[i] / rate[i] for i in going]
        then = min(ends + [start[i] for i in pending if start[i] > now])
        if then > now:
            peak = max(peak, sum(rate.values()))
        for i, at in zip(going, ends, strict=True):
            left[i] -= rate[i] * (then - now)
            if at <= then:
                end[i] = then
                pending.remove(i)
        now = then
    return np.array(end), peak


def drawn(seed, n=12, times=10.0, spread=2.0, start=0.0):
    """Transfers of some seconds, some at the same time, some of nothing, some inactive."""
    rng = np.random.default_rng(seed)
    starts = start + rng.choice([0.0, times * rng.random()], n) + times * rng.random(n) * (rng.random(n) < 0.5)
    bandwidth = CAPACITY / n * np.exp(spread * rng.standard_normal(n))
    sizes = bandwidth * times * rng.random(n) * (rng.random(n) < 0.9)
    return *(np.float32(x) for x in (starts, sizes, bandwidth)), rng.random(n) < 0.85


def test_three_transfers_share_a_link_as_computed_by_hand():
    """Capacity 8; own bandwidths 1, 4 and 10; 2, 10.5 and 14 bytes.

    To t = 2 the rates are 1, 3.5, 3.5. Then 3.5 and 7 bytes are left, at 4 and 4. From 2.875 on 3.5 bytes at 8.
    """
    end, peak = transfers(jnp.zeros(3), jnp.array([14.0, 2, 10.5]), jnp.array([10.0, 1, 4]), jnp.ones(3, bool), 8.0)
    assert end.tolist() == [3.3125, 2.0, 2.875]
    assert peak == 8


@pytest.mark.parametrize("first", range(0, 200, 40))
def test_ends_and_peaks_equal_those_of_a_fluid_simulation(first):
    """To 16 roundings: a level is a prefix sum, a difference and a quotient, and times are rounded when reported."""
    for seed in range(first, first + 40):
        case = drawn(seed)
        end, peak = shared(*case)
        expected, most = fluid(*case, CAPACITY)
        np.testing.assert_allclose(end, expected, rtol=16 * EPSILON, err_msg=str(seed))
        assert float(peak) == pytest.approx(most, rel=16 * EPSILON), seed


@pytest.mark.parametrize("seed", range(3))
def test_errors_do_not_add_up_over_many_events(seed):
    case = drawn(seed, n=300)
    np.testing.assert_allclose(shared(*case)[0], fluid(*case, CAPACITY)[0], rtol=32 * EPSILON)


@pytest.mark.parametrize("seed", range(3))
def test_intervals_shorter_than_the_distance_of_two_times_add_up(seed):
    """From 1e9 s on float32 are 64 s apart; here are 600 intervals of some 20 s."""
    case = drawn(seed, n=300, times=3e3, start=1e9)
    end, peak = shared(*case)
    np.testing.assert_allclose(end, fluid(*case, CAPACITY)[0], atol=64)
    assert peak == CAPACITY


def test_a_long_transfer_does_not_lose_what_passes_in_short_intervals():
    """Of 2**24 - 1 bytes, in 299 intervals of 0.4 bytes each, which is less than half of the distance of two sizes."""
    n = 300
    start = np.float32(4e-7 * np.arange(n))
    sizes, bandwidth = np.float32([2**24 - 1] + [1] * (n - 1)), np.float32([CAPACITY / 2] + [1] * (n - 1))
    end, _ = shared(start * 2, sizes, bandwidth, np.ones(n, bool))
    np.testing.assert_allclose(end[0], (2**24 - 1) / (CAPACITY / 2), rtol=2 * EPSILON)


def test_any_sizes_rates_and_times_end():
    rng = np.random.default_rng(5)
    for _ in range(50):
        start, sizes, bandwidth = (np.float32(10 ** rng.uniform(0, most, 40)) for most in (9, 12, 12))
        active = rng.random(40) < 0.9
        end, peak = (np.asarray(x) for x in shared(start, sizes, bandwidth, active))
        assert np.all(np.isfinite(end)) and 0 < peak <= CAPACITY
        np.testing.assert_array_equal(end[~active], start[~active])
        alone = start + sizes / np.minimum(bandwidth, CAPACITY)
        assert np.all(end[active] >= alone[active] * (1 - 8 * EPSILON))
        np.testing.assert_allclose(end, fluid(start, sizes, bandwidth, active, CAPACITY)[0], rtol=64 * EPSILON)


def test_equal_transfers_share_equally_and_end_together():
    n = 7
    end, peak = shared(jnp.full(n, 3.0), jnp.full(n, 1e6), jnp.full(n, 1e9), jnp.ones(n, bool))
    np.testing.assert_allclose(end, 3.0 + n, rtol=2 * EPSILON)
    assert peak == CAPACITY and len(set(end.tolist())) == 1


@pytest.mark.parametrize("f", [shared, unlimited])
def test_one_transfer_none_active_and_nothing_to_send(f):
    start, size, bandwidth = np.float32([0.1]), np.float32([1e5]), np.float32([3e4])
    end, peak = f(start, size, bandwidth, np.ones(1, bool))
    assert end.tolist() == (start + size / bandwidth).tolist() and peak == bandwidth
    for sizes, active in ((size, np.zeros(1, bool)), (0 * size, np.ones(1, bool))):
        end, peak = f(start, sizes, bandwidth, active)
        assert end.tolist() == start.tolist() and peak == 0
    end, peak = f(np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, bool))
    assert end.shape == (0,) and peak == 0


def test_without_a_limit_ends_are_exact_and_peaks_those_of_overlapping_intervals():
    for seed in range(20):
        start, sizes, bandwidth, active = drawn(seed)
        end, peak = unlimited(start, sizes, bandwidth, active)
        used = active & (sizes > 0)
        np.testing.assert_array_equal(end, np.where(used, start + sizes / bandwidth, start))
        sums = [bandwidth[used & (start <= t) & (t < end)].sum(dtype=float) for t in start[used]]
        assert float(peak) == pytest.approx(max(sums), rel=16 * EPSILON)


@pytest.mark.parametrize("f", [shared, unlimited])
def test_a_transfer_that_ends_when_another_begins_does_not_add_to_it(f):
    start, sizes, bandwidth = np.float32([0.1, 0.1, 0]), np.float32([70, 20, 0]), np.float32([100, 20, 50])
    start[2] = start[0] + sizes[0] / bandwidth[0]
    sizes[2] = 50
    end, peak = f(start, sizes, bandwidth, np.ones(3, bool))
    assert end[0] == start[2] and peak == 120


def test_clients_in_another_order_have_the_same_ends():
    case = drawn(3)
    mixed = np.random.default_rng(0).permutation(12)
    end, peak = shared(*case)
    other, same = shared(*(x[mixed] for x in case))
    np.testing.assert_array_equal(np.asarray(other), np.asarray(end)[mixed])
    assert peak == same


def test_transfers_in_a_loop_in_a_map_and_on_several_devices_are_those_alone():
    cases = [np.stack(column) for column in zip(*(drawn(seed) for seed in range(2)), strict=True)]
    alone = [shared(*(column[i] for column in cases)) for i in range(2)]
    for mapped in (jax.jit(jax.vmap(shared)), jax.pmap(functools.partial(transfers, capacity=CAPACITY))):
        end, peak = mapped(*cases)
        np.testing.assert_array_equal(end, [one for one, _ in alone])
        np.testing.assert_array_equal(peak, [one for _, one in alone])

    _, sizes, bandwidth, active = drawn(0)
    one_after_the_other = lambda _, start: transfers(start, sizes, bandwidth, active, CAPACITY)[0]
    end = jax.jit(lambda start: jax.lax.fori_loop(0, 2, one_after_the_other, start))(jnp.zeros(12))
    again = shared(shared(np.zeros(12, np.float32), sizes, bandwidth, active)[0], sizes, bandwidth, active)[0]
    np.testing.assert_array_equal(end, again)


@pytest.mark.parametrize("capacity", [0.0, -1.0, math.nan])
def test_a_capacity_that_is_not_above_zero_is_named(capacity):
    with pytest.raises(ValueError, match="capacity must be above 0"):
        transfers(jnp.zeros(1), jnp.ones(1), jnp.ones(1), jnp.ones(1, bool), capacity)
