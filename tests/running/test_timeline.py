"""Times of rounds before they run, by hand, and against the clock of the round itself."""

import dataclasses
import json
import math

import numpy as np
import pytest

from fedjax8 import dropouts, topologies
from fedjax8.algorithms.dfedavg import dfedavg
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.salf import salf
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.config import component
from fedjax8.data.federated import FederatedData
from fedjax8.participation import overselect
from fedjax8.results.curves import waiting_share
from fedjax8.results.runs import read_run
from fedjax8.running.about import about
from fedjax8.running.timeline import SHOWN, foreseen, round_times, timeline
from fedjax8.systems import Speeds, SystemModel, lognormal, same


def of_clients(step=1.0, down=4.0, up=4.0, latency=0.0):
    """A system model of arrays, or numbers, by client."""

    def of(x, ids):
        return np.full(len(ids), x, float) if np.ndim(x) == 0 else np.asarray(x, float)[ids]

    return SystemModel(lambda seed, number, ids: Speeds(*(of(x, ids) for x in (step, down, up, latency))))


def simulation(toys, system, b, *, make=fedavg, rows=None, **more):
    return toys.build(make, toys.clients([1.0] * len(b), b, rows), epochs=1, system=system, **more)


def late_after(seconds):
    return lambda local: dropouts.with_dropout(fedavg(local), dropouts.deadline(seconds))


def test_clients_receive_train_and_send_one_after_the_other(toys):
    """4 bytes down at 8 and 4 B/s, 3 and 1 steps of a second, 4 bytes up at 2 and 1 B/s; a quarter second of latency
    each way. The second client ends the round."""
    system = of_clients(down=[8.0, 4.0], up=[2.0, 1.0], latency=0.25)
    found = round_times(simulation(toys, system, [1.0, 2.0], rows=[3, 1]), 0)
    np.testing.assert_array_equal(found.received, [0.75, 1.25])
    np.testing.assert_array_equal(found.trained, [3.75, 2.25])
    np.testing.assert_array_equal(found.sent, [6.0, 6.5])
    assert found.seconds == 6.5 and not found.late.any() and not found.lost.any()
    limits = {"local steps": 1.0, "downlink": 1.0, "uplink": 4.0, "latency": 0.5, "the server's link": 0.0}
    assert found.limits == limits


def test_a_round_with_a_straggler_lasts_until_the_deadline(toys):
    found = round_times(simulation(toys, of_clients(step=[1.0, 2.0, 8.0]), [1.0] * 3, make=late_after(5.0)), 0)
    assert found.late.tolist() == [False, False, True]
    assert (found.seconds, found.limits) == (5.0, {"the deadline": 5.0})


def test_nobody_waits_for_clients_that_participation_loses(toys):
    """Three of four are first: 2 + 1, 2, 4 s, and not 8; the last only receives, for a second."""
    sim = simulation(
        toys, of_clients(step=[8.0, 2.0, 4.0, 1.0]), [1.0] * 4, cohort_size=3, participation=overselect(1.3)
    )
    found = round_times(sim, 0)
    assert (found.seconds, found.lost.tolist()) == (6.0, [True, False, False, False])
    assert found.sent.tolist() == [1.0, 4.0, 6.0, 3.0]


@pytest.mark.parametrize(
    ("make", "deadline"),
    [
        (fedavg, math.inf),
        (lambda local: scaffold(local, learning_rate=0.1), math.inf),
        (late_after(4.0), 4.0),
        (lambda local: salf(local, depth="clock", deadline=4.0), math.inf),
    ],
    ids=["fedavg", "scaffold", "deadline", "salf"],
)
def test_the_clock_of_the_rounds_measures_what_was_foreseen(toys, make, deadline):
    system = lognormal(0.3, jitter=0.4, link_spread=0.3, latency=0.1, down_bandwidth=3.0, up_bandwidth=2.0)
    sim = simulation(toys, system, [1.0] * 5, rows=[1, 2, 3, 4, 5], make=make, cohort_size=3)
    _, lines = sim.run_rounds(sim.init(), 4)
    measured = np.diff([line["simulated_seconds"] for line in lines], prepend=0.0)
    found = [round_times(sim, number) for number in range(4)]
    np.testing.assert_allclose([times.seconds for times in found], measured, rtol=1e-5)
    late = [int(times.late.sum()) for times in found]
    assert late == [line.get("dropped", 0) for line in lines] and any(late) == (deadline < math.inf)
    whole = foreseen(sim, 4)
    assert whole.run == pytest.approx(lines[-1]["simulated_seconds"], rel=1e-5)
    assert (whole.least, whole.most) == pytest.approx((measured.min(), measured.max()), rel=1e-5)
    assert whole.exact and sum(whole.limits.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("topology", [topologies.ring(), topologies.matching(), topologies.star(1)])
def test_rounds_on_a_graph_last_as_long_as_was_foreseen(toys, topology):
    system = lognormal(0.3, jitter=0.4, link_spread=0.3, latency=0.1, down_bandwidth=3.0, up_bandwidth=2.0)
    sim = simulation(toys, system, [1.0] * 5, rows=[1, 2, 3, 4, 5], make=lambda local: dfedavg(local, topology))
    _, lines = sim.run_rounds(sim.init(), 4)
    measured = np.diff([line["simulated_seconds"] for line in lines], prepend=0.0)
    np.testing.assert_allclose([round_times(sim, number).seconds for number in range(4)], measured, rtol=1e-5)
    assert set(foreseen(sim, 4).limits) == {"local steps", "links between workers"}


def test_shares_of_what_limits_a_run_are_those_of_its_last_clients_largest_first(toys):
    found = foreseen(simulation(toys, same(2.0, down_bandwidth=4.0, up_bandwidth=0.8), [1.0]), rounds=7)
    assert found.limits == pytest.approx({"uplink": 5 / 8, "local steps": 2 / 8, "downlink": 1 / 8} | rest())
    assert list(found.limits)[:3] == ["uplink", "local steps", "downlink"]
    assert (found.least, found.most, found.run) == (8.0, 8.0, 56.0)


def rest():
    return {"latency": 0.0, "the server's link": 0.0}


def test_a_timeline_has_the_first_rounds_and_the_last_client_of_each(toys):
    step = 1.0 + np.arange(100)
    sim = simulation(toys, of_clients(step=step), [1.0] * 100, make=late_after(90.0))
    shown = json.loads(json.dumps(timeline(sim)))
    assert [line["round"] for line in shown] == [1, 2, 3]
    first = shown[0]
    assert (first["asked"], len(first["clients"]), first["seconds"]) == (100, SHOWN, 90.0)
    assert (first["clients"][0], first["clients"][-1]) == (0, 99)
    # of 100 clients 88 have sent before 90 s: 1 + k + 1 up to k = 88
    expected = ["late" if 2 + 1 + client > 90 else "used" for client in first["clients"]]
    assert first["fates"] == expected and set(expected) == {"late", "used"}
    assert first["sent"][0] == 3.0 and first["received"] == [1.0] * SHOWN


def test_without_a_clock_or_where_rows_are_private_there_is_no_timeline(toys):
    timed, untimed = (simulation(toys, system, [1.0, 2.0]) for system in (same(), None))
    assert timeline(untimed) == [] and foreseen(untimed, rounds=3) is None
    columns = timed.data.columns | {"y": np.zeros((2, 1))}
    timed = dataclasses.replace(timed, data=FederatedData.from_owners(columns, np.arange(2), 2))
    assert "timeline" in about(timed, None) and "timeline" not in about(timed, None, private=True)


def test_a_run_that_is_resumed_ends_with_the_simulated_time_of_one_that_was_not(tmp_path, run_module):
    config = run_module.config(system=component("lognormal", step_seconds=0.5, jitter=0.3))
    whole = run_module.run(config, tmp_path / "whole").summary
    run_module.run(config, tmp_path / "cut", rounds=2)
    cut = run_module.run(config, tmp_path / "cut").summary
    names = ("simulated_seconds", "waiting_share", "wasted_bytes")
    assert [cut[name] for name in names] == pytest.approx([whole[name] for name in names], rel=1e-12)
    found = read_run(tmp_path / "whole")
    assert 0 < whole["waiting_share"] == pytest.approx(waiting_share(found), rel=1e-9)
    assert [line["round"] for line in found.about["timeline"]] == [1, 2, 3]
    measured = found.metrics["simulated_seconds"]
    assert [line["seconds"] for line in found.about["timeline"]] == pytest.approx(
        np.diff(measured, prepend=0.0)[:3], rel=1e-4
    )
