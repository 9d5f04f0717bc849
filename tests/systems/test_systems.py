"""System models: pure functions of (seed, round, client), whose statistics are those that they name."""

import importlib

import numpy as np
import pytest
from scipy import stats

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.errors import UserError
from fedjax8.lookup import component_names
from fedjax8.systems import Speeds, SystemModel, lognormal, none, same
from fedjax8.systems._draws import normals, uniforms

IDS = np.arange(20_000)
CASES = [
    (name, i)
    for name in component_names("fedjax8.systems")
    if name != "none"
    for i in range(len(importlib.import_module(f"fedjax8.systems.{name}").EXAMPLES))
]


def example(name, index):
    module = importlib.import_module(f"fedjax8.systems.{name}")
    return getattr(module, name)(**module.EXAMPLES[index])


@pytest.mark.parametrize(("name", "index"), CASES)
def test_speeds_are_of_the_client_and_the_round_alone(name, index):
    system = example(name, index)
    whole, some = system.speeds(3, 7, IDS), system.speeds(3, 7, IDS[[19, 4, 4]])
    for everyone, few in zip(whole, some, strict=True):
        assert everyone.shape == IDS.shape and few.shape == (3,)
        np.testing.assert_array_equal(np.asarray(few), np.asarray(everyone)[[19, 4, 4]])
    assert np.all(whole.step_seconds >= 0) and np.all(whole.latency >= 0)
    assert np.all(whole.down_bandwidth > 0) and np.all(whole.up_bandwidth > 0)
    assert all(np.all(np.isfinite(np.float32(values))) for values in whole)


def test_lognormal_devices_and_links_have_the_medians_and_deviations_that_are_named():
    system = lognormal(0.2, spread=0.5, jitter=0.3, link_spread=0.4, up_bandwidth=3e5, seed=5)
    first, second = system.speeds(0, 0, IDS), system.speeds(0, 1, IDS)
    logs = np.log(first.step_seconds)
    assert np.median(first.step_seconds) == pytest.approx(0.2, rel=0.02)
    assert np.std(logs) == pytest.approx(np.hypot(0.5, 0.3), rel=0.02)
    assert np.std(logs - np.log(second.step_seconds)) == pytest.approx(0.3 * np.sqrt(2), rel=0.02)
    assert np.std(np.log(first.up_bandwidth)) == pytest.approx(0.4, rel=0.02)
    assert np.median(first.up_bandwidth) == pytest.approx(3e5, rel=0.02)
    np.testing.assert_array_equal(first.up_bandwidth, second.up_bandwidth)
    assert abs(np.corrcoef(logs, np.log(first.up_bandwidth))[0, 1]) < 0.03


def test_draws_are_normal_and_uniform():
    assert (
        stats.kstest(normals(IDS, 0), "norm").pvalue > 1e-3
        and stats.kstest(normals(IDS, 0, 1, 5), "norm").pvalue > 1e-3
    )
    assert all(stats.kstest(u, "uniform").pvalue > 1e-3 for u in uniforms(IDS, 3))


def test_draws_of_different_addresses_are_not_related():
    draws = [normals(IDS, *address) for address in ((0,), (1,), (0, 1), (1, 0), (0, 0, 1))]
    assert np.abs(np.corrcoef(draws) - np.eye(len(draws))).max() < 0.03


def test_a_step_takes_its_operations_over_the_rate_of_the_device():
    counted = lambda: 3e9
    assert same(flops=1.5e9, operations=counted).speeds(0, 0, IDS[:2]).step_seconds.tolist() == [2.0, 2.0]
    with pytest.raises(UserError, match="both say"):
        same(0.1, flops=1e9, operations=counted)
    with pytest.raises(UserError, match="operations"):
        same(flops=1e9)


@pytest.mark.parametrize(
    ("factory", "settings"),
    [
        (same, {"step_seconds": -1.0}),
        (same, {"up_bandwidth": 0.0}),
        (same, {"down_bandwidth": float("inf")}),
        (same, {"latency": float("nan")}),
        (lognormal, {"spread": 5.0}),
        (lognormal, {"link_spread": -0.1}),
        (lognormal, {"seed": -1}),
        (same, {"flops": 0.0, "operations": lambda: 1.0}),
    ],
)
def test_settings_out_of_range_are_named(factory, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        factory(**settings)


def test_none_has_no_clock():
    assert not none().timed


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("step_seconds", np.nan, "client 1 the step_seconds nan; it must be a number from 0"),
        ("latency", -1.0, "client 1 the latency -1; it must be a number from 0"),
        ("up_bandwidth", 0.0, "client 1 the up_bandwidth 0; it must be a number above 0"),
        ("down_bandwidth", -np.inf, "client 1 the down_bandwidth -inf"),
    ],
)
def test_speeds_that_no_client_can_have_end_a_run(toys, field, value, says):
    usual = same().speeds(0, 0, np.arange(2))
    bad = usual._replace(**{field: np.where(np.arange(2) == 1, value, getattr(usual, field))})
    sim = toys.build(fedavg, toys.q2(), steps=1, system=SystemModel(lambda seed, number, ids: Speeds(*bad)))
    with pytest.raises(UserError, match=says):
        sim.run_round(sim.init())


def test_the_fastest_and_slowest_clients_have_finite_times(toys):
    ends = Speeds(*(np.array([low, high]) for low, high in ((0.0, 1e300), (1e-300, np.inf), (1e300, 1e-30), (0, 1e30))))
    sim = toys.build(fedavg, toys.q2(), steps=3, system=SystemModel(lambda seed, number, ids: ends))
    _, lines = sim.run_rounds(sim.init(), 3)
    assert 0 < lines[-1]["simulated_seconds"] < 1e25 and 0 <= lines[-1]["waiting_share"] <= 1
