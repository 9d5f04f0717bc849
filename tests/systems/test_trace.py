"""Measured clients from a table: what rows say, who gets which, when they are there, and tables that are refused."""

import json
import pickle

import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.systems import fedscale, trace

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'fedjax8[csv]'")
IDS = np.arange(20_000)
ROWS = """client,step_seconds,down,up,latency,available,period
2,0.8,1250000,250000,0.02,0-3600;7200-9000,86400
0,0.1,5000000,4000000,0,,
1,0.4,2000000,1000000,0.01,10.5-20,
"""


def table(tmp_path, text=ROWS, name="devices.csv"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_clients_have_the_speeds_of_their_rows_in_any_order(tmp_path):
    speeds = trace(table(tmp_path)).speeds(0, 0, np.array([1, 2, 0, 2]))
    assert speeds.step_seconds.tolist() == [0.4, 0.8, 0.1, 0.8]
    assert speeds.down_bandwidth.tolist() == [2e6, 1.25e6, 5e6, 1.25e6]
    assert speeds.up_bandwidth.tolist() == [1e6, 2.5e5, 4e6, 2.5e5]
    assert speeds.latency.tolist() == [0.01, 0.02, 0.0, 0.02]


def test_clients_without_a_row_are_given_one_by_seed_and_id(tmp_path):
    """20,000 draws among three rows; five standard errors of a share are 0.017."""
    path = table(tmp_path)
    first, same, other = (trace(path, seed=seed).speeds(7, 3, IDS + 5).step_seconds for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    for seconds in (0.1, 0.4, 0.8):
        assert abs(np.mean(first == seconds) - 1 / 3) < 0.017
    assert abs(np.mean(first == other) - 1 / 3) < 0.017
    few = trace(path, seed=1).speeds(0, 9, np.array([900, 8]) + 5).step_seconds
    assert few.tolist() == first[[900, 8]].tolist()


def test_a_speed_divides_the_seconds_of_the_setting_or_of_operations_over_a_rate(tmp_path):
    path = table(tmp_path, "client,speed,down,up\n0,1,1e6,1e6\n1,4,1e6,1e6\n")
    ids = np.arange(2)
    assert trace(path).speeds(0, 0, ids).step_seconds.tolist() == [0.1, 0.025]
    assert trace(path, 0.2).speeds(0, 0, ids).step_seconds.tolist() == [0.2, 0.05]
    counted = trace(path, flops=1e9, operations=lambda: 2e9)
    assert counted.speeds(0, 0, ids).step_seconds.tolist() == [2.0, 0.5]
    assert counted.speeds(0, 0, ids).latency.tolist() == [0.0, 0.0] and counted.available is None
    with pytest.raises(UserError, match=r"devices\.csv has a column 'step_seconds'"):
        trace(table(tmp_path), 0.2)


def test_jitter_changes_the_steps_of_a_round(tmp_path):
    system = trace(table(tmp_path), jitter=0.2)
    drawn = np.log([system.speeds(0, r, np.array([1])).step_seconds[0] / 0.4 for r in range(2000)])
    assert abs(np.mean(drawn)) <= 5 * 0.2 / np.sqrt(2000) and np.std(drawn) == pytest.approx(0.2, rel=0.1)


def test_clients_are_there_in_their_intervals_which_repeat_where_there_is_a_period(tmp_path):
    available = trace(table(tmp_path)).available
    there = lambda seconds: available(seconds, np.array([0, 1, 2])).tolist()
    assert there(0.0) == [True, False, True]
    assert there(10.5) == [True, True, True]
    assert there(20.0) == [True, False, True]
    assert there(3599.5) == [True, False, True]
    assert there(3600.0) == there(7199.0) == there(9000.0) == [True, False, False]
    assert there(7200.0) == there(8999.0) == [True, False, True]
    assert there(86400.0 * 3 + 8000) == [True, False, True]
    assert there(86400.0 * 3 + 15) == [True, False, True]
    assert there(86400.0 * 3 + 5000) == [True, False, False]


def test_many_intervals_are_searched_as_a_scan_finds_them(tmp_path):
    rng = np.random.default_rng(0)
    lines, truth = ["client,step_seconds,down,up,available,period"], []
    for client in range(30):
        bounds = np.unique(rng.integers(0, 1000, 2 * rng.integers(1, 20)))
        pairs = list(zip(bounds[0:-1:2], bounds[1::2], strict=False))
        lines.append(f"{client},1,1,1,{';'.join(f'{a}-{b}' for a, b in pairs)},1000")
        truth.append(pairs)
    available = trace(table(tmp_path, "\n".join(lines))).available
    for seconds in (*rng.uniform(0, 5000, 40), 0, 999, 1000, *truth[3][0], *truth[5][-1]):
        expected = [any(a <= seconds % 1000 < b for a, b in pairs) for pairs in truth]
        assert available(float(seconds), np.arange(30)).tolist() == expected


HEADER = "client,step_seconds,down,up,latency,available,period\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"devices\.csv.*row 1"),
        (HEADER, "has no rows"),
        ("client,step_seconds,down\n0,1,1\n", "row 1 has no column 'up'"),
        ("client,down,up\n0,1,1\n", "one of the columns step_seconds and speed"),
        ("client,step_seconds,speed,down,up\n0,1,1,1,1\n", "one of the columns step_seconds and speed"),
        ("client,step_seconds,down,up,avaliable\n0,1,1,1,\n", "'avaliable'.*did you mean 'available'"),
        ("client,step_seconds,down,up,period\n0,1,1,1,5\n", "'period' without 'available'"),
        (HEADER + "0,1,0,1,0,,\n", "'down', row 2.* is 0; it must be a number above 0"),
        (HEADER + "0,1,1,1,0,,\n1,1,1,-3,0,,\n", "'up', row 3.* is -3"),
        (HEADER + "0,-1,1,1,0,,\n", "'step_seconds', row 2.* is -1; it must be a number from 0"),
        (HEADER + "0,1,1,inf,0,,\n", "'up', row 2.*inf"),
        (HEADER + "0,1,1,1e39,0,,\n", "'up', row 2"),
        (HEADER + "0,fast,1,1,0,,\n", "'step_seconds', row 2.*'fast'"),
        (HEADER + "0,1,1,1,,,\n", "'latency', row 2.*no value"),
        (HEADER + "0.5,1,1,1,0,,\n", "'client', row 2.* is 0.5; it must be a whole number"),
        (HEADER + "4,1,1,1,0,,\n3,1,1,1,0,,\n4,1,1,1,0,,\n", "'client', row 4.* is 4 a second time"),
        (HEADER + "0,1,1,1,0,0-5;4-9,\n", "'available', row 2.*'4-9' after one that ends at 5"),
        (HEADER + "0,1,1,1,0,7-9;0-5,\n", "rising order"),
        (HEADER + "0,1,1,1,0,5-5,\n", "must end after it begins"),
        (HEADER + "0,1,1,1,0,0-5;,\n", "must be like 0-3600"),
        (HEADER + "0,1,1,1,0,-3-5,\n", "must be like 0-3600"),
        (HEADER + "0,1,1,1,0,0-50,40\n", "beyond the period of 40"),
        (HEADER + "0,1,1,1,0,0-50,0\n", "'period', row 2.*above 0"),
        (HEADER + "0,1,1,1,0,0-50,day\n", "'period', row 2.*'day'"),
        (HEADER + "0,1,1,1\n", "cannot be read as a table"),
    ],
)
def test_tables_that_cannot_be_are_refused_with_file_row_and_what_is_allowed(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as error:
        trace(table(tmp_path, text))
    assert "devices.csv" in str(error.value)


def test_a_file_is_needed_and_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="file is needed"):
        trace()
    with pytest.raises(UserError, match="nowhere"):
        trace(str(tmp_path / "nowhere.csv"))


CAPACITY = {
    17: {"computation": 162.0, "communication": 5648.0},
    4: {"computation": 40.0, "communication": 800.0},
    9: {"computation": 80.0, "communication": 1000.0},
}
BEHAVIOR = {
    "3834": {"duration": 9, "inactive": [20, 50, 90], "finish_time": 100, "active": [10, 40, 45], "model": "CPH1801"},
    "3835": {"duration": 1, "inactive": [7], "finish_time": 60, "active": [7], "model": "SM-G611MT"},
}


@pytest.mark.parametrize("kind", ["json", "pickle"])
def test_traces_of_fedscale_take_as_long_as_its_clock_says(tmp_path, kind):
    """Its seconds: 3 batch_size steps ms / 1000, and kbits of 1024 bits over kbit/s."""
    for name, content in (("capacity", CAPACITY), ("behavior", BEHAVIOR)):
        data = json.dumps(content).encode() if kind == "json" else pickle.dumps(content)
        (tmp_path / f"{name}.{kind}").write_bytes(data)
    out = tmp_path / "devices.csv"
    capacity, behavior = tmp_path / f"capacity.{kind}", tmp_path / f"behavior.{kind}"
    assert fedscale.convert(capacity, out, behavior=behavior, batch_size=20) == 3
    system = trace(str(out))
    speeds = system.speeds(0, 0, np.arange(3))
    num_bytes, steps = 123_456, 5
    for client, values in enumerate(CAPACITY.values()):
        computation = 3.0 * 20 * steps * values["computation"] / 1000.0
        communication = num_bytes / 1024.0 * 8 / values["communication"]
        assert speeds.step_seconds[client] * steps == pytest.approx(computation)
        for bandwidth in (speeds.down_bandwidth, speeds.up_bandwidth):
            assert num_bytes / bandwidth[client] == pytest.approx(communication)
    there = lambda seconds: system.available(seconds, np.arange(3)).tolist()
    assert there(7) == there(307) == [False, True, False]
    assert there(15) == there(47) == there(89) == there(189) == [True, False, True]
    assert there(30) == [False, False, False]


def test_without_a_batch_size_devices_have_speeds_around_the_median(tmp_path):
    (tmp_path / "capacity.json").write_text(json.dumps(CAPACITY))
    out = tmp_path / "devices.csv"
    fedscale.convert(tmp_path / "capacity.json", str(out))
    system = trace(str(out), 0.5)
    np.testing.assert_allclose(system.speeds(0, 0, np.arange(3)).step_seconds, [0.5 * 162 / 80, 0.25, 0.5])
    assert system.available is None
    with pytest.raises(UserError, match=r"devices\.csv.*exists"):
        fedscale.convert(tmp_path / "capacity.json", out)


class Harmful:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "content",
    [Harmful(), {1: Harmful()}, {1: np.float64(2.0)}, {}, [1], {1: {"computation": 1.0}}, {1: 3},
     {1: {"computation": 0.0, "communication": 1.0}}, {1: {"computation": True, "communication": 1.0}}],
)  # fmt: skip
def test_pickles_are_not_run_and_entries_that_cannot_be_are_refused(tmp_path, capsys, content):
    (tmp_path / "capacity").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="capacity"):
        fedscale.convert(tmp_path / "capacity", tmp_path / "devices.csv")
    assert capsys.readouterr().out == "" and not (tmp_path / "devices.csv").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"active": [1, 5], "inactive": [2], "finish_time": 9},
        {"active": [5], "inactive": [2], "finish_time": 9},
        {"active": [1], "inactive": [10], "finish_time": 9},
        {"active": [-1], "inactive": [2], "finish_time": 9},
        {"active": ["1"], "inactive": [2], "finish_time": 9},
        {"active": [], "inactive": [], "finish_time": 9},
        {"active": [1], "inactive": [2]},
        {"active": [1], "inactive": [2], "finish_time": 10**400},
        {"active": [float("nan")], "inactive": [2], "finish_time": 9},
    ],
)
def test_behavior_that_cannot_be_is_refused_with_the_client(tmp_path, values):
    (tmp_path / "capacity.json").write_text(json.dumps(CAPACITY))
    (tmp_path / "behavior.json").write_text(json.dumps({"3834": values}))
    with pytest.raises(UserError, match=r"behavior\.json: client '3834'.*finish_time"):
        fedscale.convert(
            tmp_path / "capacity.json", tmp_path / "devices.csv", behavior=tmp_path / "behavior.json", batch_size=1
        )
