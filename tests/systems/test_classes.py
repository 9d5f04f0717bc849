"""Kinds of devices and links: shares of clients, relative speeds, and settings that are refused."""

import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.systems import classes
from fedjax8.systems.classes import KINDS, kinds_of

IDS = np.arange(20_000)


def test_clients_are_of_the_kinds_in_the_shares_that_are_named():
    """20,000 draws; five standard errors of a share are at most 0.018."""
    shares = {"lte": 0.5, "gateway": 0.0, "wifi": 0.3, "datacenter": 0.2}
    kinds = np.array(kinds_of(IDS, shares, seed=4))
    for name in KINDS:
        share = shares.get(name, 0.0)
        assert abs(np.mean(kinds == name) - share) <= 5 * np.sqrt(share * (1 - share) / len(IDS))
    text = "lte=0.5, gateway=0, wifi = 0.3,datacenter=0.2"
    assert kinds_of(IDS, text, seed=4) == kinds.tolist()
    assert kinds_of(IDS[[7, 3]], text, seed=4) == kinds[[7, 3]].tolist()
    assert np.mean(np.array(kinds_of(IDS, shares, seed=5)) == kinds) < 0.5


def test_links_are_those_of_the_clients_kind_in_bytes_a_second():
    system = classes("fiber=0.5,gateway=0.5", seed=1).speeds(0, 0, IDS[:50])
    kinds = kinds_of(IDS[:50], "fiber=0.5,gateway=0.5", seed=1)
    assert {"fiber", "gateway"} == set(kinds)
    megabits = {"fiber": (271, 124, 4.5), "gateway": (10, 5, 25)}
    expected = np.array([megabits[kind] for kind in kinds])
    np.testing.assert_allclose(system.down_bandwidth, expected[:, 0] * 1e6 / 8)
    np.testing.assert_allclose(system.up_bandwidth, expected[:, 1] * 1e6 / 8)
    np.testing.assert_allclose(system.latency, expected[:, 2] / 1e3)


def test_a_single_name_is_the_kind_of_all_clients():
    for name, kind in KINDS.items():
        assert set(kinds_of(IDS[:100], name)) == {name}
        assert set(classes(name).speeds(0, 0, IDS[:100]).down_bandwidth) == {kind.down_bandwidth}


def test_steps_take_what_a_phone_takes_times_the_ratio_of_rates_or_operations_over_rates():
    """A phone of 2e10 operations a second takes 0.1 s, so that the step has 2e9."""
    one, counted = IDS[:1], lambda: 2e9
    for name, kind in KINDS.items():
        expected = pytest.approx(2e9 / kind.flops)
        assert classes(name, 0.1).speeds(0, 0, one).step_seconds[0] == expected
        assert classes(name, flops="kinds", operations=counted).speeds(0, 0, one).step_seconds[0] == expected
    slower = {"flops": "gateway=4e9,lte=1e10", "operations": counted}
    assert classes("gateway", **slower).speeds(0, 0, one).step_seconds[0] == 0.5
    assert classes("lte", flops={"lte": 1e10}, operations=counted).speeds(0, 0, one).step_seconds[0] == 0.2
    assert classes("wifi", **slower).speeds(0, 0, one).step_seconds[0] == 0.1


def test_a_step_is_counted_once_for_all_kinds_and_shares_may_be_rounded():
    calls = []
    counted = lambda: calls.append(1) or 2e9
    system = classes("lte=0.33333333,wifi=0.33333334,gateway=0.33333334,fiber=0", flops="kinds", operations=counted)
    assert len(calls) == 1
    assert set(system.speeds(0, 0, IDS).step_seconds) == {0.1, 0.25}


def test_jitter_changes_steps_from_round_to_round_and_nothing_else():
    system = classes("lte", jitter=0.3)
    first, second, other_run = system.speeds(0, 0, IDS), system.speeds(0, 1, IDS), system.speeds(1, 0, IDS)
    logs = np.log(first.step_seconds / 0.1)
    assert abs(np.mean(logs)) <= 5 * 0.3 / np.sqrt(len(IDS)) and np.std(logs) == pytest.approx(0.3, rel=0.03)
    for later in (second, other_run):
        assert abs(np.corrcoef(logs, np.log(later.step_seconds))[0, 1]) < 0.04
        np.testing.assert_array_equal(first.up_bandwidth, later.up_bandwidth)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shares": "lte=0.5,fibre=0.5"}, "no kind 'fibre'.*did you mean 'fiber'"),
        ({"shares": "lte=0.5,wifi=0.4"}, "adds up to 0.9"),
        ({"shares": "lte=0.5,lte=0.5"}, "lte twice"),
        ({"shares": "lte=half,wifi=0.5"}, "lte has no number"),
        ({"shares": "lte,wifi"}, "lte has no number"),
        ({"shares": ""}, "no kind ''"),
        ({"shares": {}}, "adds up to 0"),
        ({"shares": 3}, "shares is 3"),
        ({"shares": {"lte": 1.5, "wifi": -0.5}}, "lte is 1.5"),
        ({"shares": {"lte": float("nan")}}, "lte is nan"),
        ({"flops": "lte=0"}, "a rate must be a number above 0"),
        ({"flops": ""}, "no kind ''"),
        ({"flops": "kinds"}, "needs the operations"),
        ({"flops": "kinds", "step_seconds": 0.1, "operations": lambda: 1.0}, "both say"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(settings, said):
    with pytest.raises(UserError, match=said):
        classes(**settings)


@pytest.mark.parametrize("setting", [{"jitter": -1.0}, {"seed": -1}, {"step_seconds": -0.1}])
def test_numbers_out_of_range_are_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        classes(**setting)
