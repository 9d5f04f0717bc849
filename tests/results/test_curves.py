import math

import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.results.curves import curve, moving_mean, statistic, trajectory, waiting_share
from fedjax8.results.runs import read_run, read_settings


def test_moving_mean_agrees_with_sums_by_hand():
    values = np.array([1.0, 3.0, 5.0, 11.0])
    np.testing.assert_array_equal(moving_mean(values, 1), values)
    # exact: small integers, divided by 1, 2, 3
    np.testing.assert_array_equal(moving_mean(values, 3), [1.0, 2.0, 3.0, 19.0 / 3.0])


def test_statistic_leaves_out_what_is_not_finite():
    assert statistic([]) is None and statistic([math.nan]) is None
    assert statistic([2.0, math.nan, 4.0]) == (3.0, pytest.approx(math.sqrt(2), rel=1e-12), 2)


def test_a_trajectory_holds_the_evaluated_rounds_with_all_bytes_by_then(tmp_path, write_run):
    found = trajectory(read_run(write_run(tmp_path / "a", [0.2, None, 0.4], (3, 2), every=5)), smooth=2)
    assert (found.rounds.tolist(), found.num_bytes.tolist()) == ([5, 15], [25.0, 75.0])
    np.testing.assert_allclose(found.score, [0.2, 0.3], rtol=1e-12)


def test_a_curve_is_the_mean_over_the_rounds_that_all_seeds_evaluated(tmp_path, write_run):
    a = write_run(tmp_path / "a", [0.2, 0.4, 0.9], (3, 1), seed=0)
    b = write_run(tmp_path / "b", [0.4, 0.8], (5, 3), seed=1)
    (setting,) = read_settings([a, b])[0]
    found = curve(setting)
    assert found.x.tolist() == [6.0, 12.0]  # 4 and 8 bytes a round
    np.testing.assert_allclose(found.mean, [0.3, 0.6], rtol=1e-12)
    # two values d apart have sample deviation d / sqrt(2)
    np.testing.assert_allclose(found.spread, [0.2 / math.sqrt(2), 0.4 / math.sqrt(2)], rtol=1e-12)
    assert curve(setting, "rounds").x.tolist() == [1.0, 2.0]
    assert curve(setting, "seconds").x.tolist() == [0.5, 1.0]
    assert curve(setting, y="absent") is None
    with pytest.raises(UserError, match="allowed: bytes, rounds, seconds"):
        curve(setting, "epochs")


def test_a_curve_against_simulated_seconds_needs_a_clock_in_every_seed(tmp_path, write_run):
    a = write_run(tmp_path / "a", [0.2, 0.4], seed=0, simulated=10.0)
    b = write_run(tmp_path / "b", [0.4, 0.8], seed=1, simulated=30.0)
    (setting,) = read_settings([a, b])[0]
    assert curve(setting, "simulated_seconds").x.tolist() == [20.0, 40.0]
    (mixed,) = read_settings([a, write_run(tmp_path / "c", [0.4, 0.8], seed=2)])[0]
    assert curve(mixed, "simulated_seconds") is None


def test_rounds_count_in_the_waiting_share_of_a_run_by_their_seconds(tmp_path, write_folder):
    ends, shares = [10.0, 40.0, 40.0, 100.0], [0.5, 0.1, 1.0, 0.25]
    lines = [
        {"round": r, "uplink_bytes": r, "downlink_bytes": r, "simulated_seconds": end, "waiting_share": share}
        for r, end, share in zip(range(1, 5), ends, shares, strict=True)
    ]
    found = read_run(write_folder(tmp_path / "a", {}, lines))
    assert waiting_share(found) == pytest.approx((0.5 * 10 + 0.1 * 30 + 0.25 * 60) / 100, rel=1e-12)
    assert math.isnan(waiting_share(read_run(write_folder(tmp_path / "b", {}))))
