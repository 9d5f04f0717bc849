"""`bench.py --codecs`: what a row says, which codecs get whole rounds; and the names over the plot of codecs."""

import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.lookup import component_names

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(load_script):
    return load_script("bench_codecs")


def tree():
    return {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((100, 10)), jnp.float32)}


def test_every_codec_that_needs_no_other_is_measured(bench):
    around_others = {"error_feedback", "delta", "skip", "chain", "per_path"}
    assert set(bench.CODECS) == set(component_names("fedjax8.codecs")) - around_others


def test_a_row_counts_bytes_and_error_and_shares_out_the_copy(bench, monkeypatch):
    monkeypatch.setattr(bench, "clock", lambda f, *arguments: {"min": 0.5, "median": 2.0})
    row = bench.throughput("fp8", tree(), copy_bandwidth=1e3)
    assert row["bytes_per_value"] == (1000 + 4) / 1000
    # Rounded at random, a value moves by less than a step, which is 2**-3 of it at most; the smallest are subnormal.
    assert 0 < row["relative_error"] < 2**-3
    assert row["encode_values_per_second"] == 1000 / 2.0
    assert row["decode_copy_share"] == (4000 + 1004) / 2.0 / 1e3
    assert bench.throughput("none", tree(), 1e3)["relative_error"] == 0


def test_a_clock_repeats_and_leaves_out_the_call_that_compiles(bench, monkeypatch):
    ticks = iter(np.cumsum([0, 10, 0, 4, 0, 7]).tolist())
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(ticks))
    calls = []
    assert bench.clock(lambda: calls.append(1)) == {"min": 4, "median": 7}
    assert len(calls) == 1 + bench.FEWEST


def test_codecs_that_take_too_long_have_no_whole_rounds(bench, monkeypatch):
    seconds = {"fp8": 0.1, "evofed": 5.0}
    monkeypatch.setitem(sys.modules, "bench_machine", type(sys)("bench_machine"))
    monkeypatch.setattr(sys.modules["bench_machine"], "machine", dict, raising=False)

    def row(name, *_):
        both = {"min": seconds[name], "median": seconds[name]}
        return {"codec": name, "encode_seconds": both, "decode_seconds": both}

    asked = []

    def costs(names, rounds):
        asked.extend(names)
        return {name: {"round_cost": 0.25, "none_seconds": 4.0, "round_seconds": 5.0} for name in names}

    monkeypatch.setattr(bench, "throughput", row)
    monkeypatch.setattr(bench, "round_costs", costs)
    monkeypatch.setattr("fedjax8.train.set_up_devices", lambda count: None)
    results = bench.run(["fp8", "evofed"], 3)
    assert asked == ["fp8"]
    assert [bench.COLUMNS["cost of W1's round"](r) for r in results["rows"]] == ["+25.0%", ""]
    assert "FP8 takes 200 ms" in bench.lines(results)[-1]


def test_names_over_a_plot_keep_their_distance_and_stay_near_their_points():
    """In a process of its own, since the study's flags have names that the main job's have too."""
    wanted_and_places = {
        "far apart": ([0.2, 0.5, 0.9], [0.2, 0.5, 0.9]),
        "same place": ([0.5, 0.5], [0.45, 0.55]),
        "three close": ([0.3, 0.32, 0.34, 0.9], [0.22, 0.32, 0.42, 0.9]),
        "left edge": ([0.0, 0.0], [0.0, 0.1]),
        "right edge": ([1.0, 1.0], [0.9, 1.0]),
    }
    code = "import json, sys, codecs_study as c; print([c.spaced(x, 0.1) for x in json.loads(sys.argv[1])])"
    wanted = json.dumps([wanted for wanted, _ in wanted_and_places.values()])
    got = subprocess.run([sys.executable, "-c", code, wanted], cwd=SCRIPTS, check=True, capture_output=True, text=True)
    for places, (_, want) in zip(json.loads(got.stdout), wanted_and_places.values(), strict=True):
        np.testing.assert_allclose(places, want, atol=1e-12)
