"""The panels of simulated time, by hand."""

import json

import pytest

from fedjax8.results.comparison import compare_runs
from fedjax8.results.panels import sections
from fedjax8.results.runs import read_run

ROUND = {
    "round": 1,
    "seconds": 300.0,
    "asked": 50,
    "clients": [4, 7, 9],
    "received": [60.0, 60.0, 30.0],
    "trained": [120.0, 240.0, 30.0],
    "sent": [180.0, 360.0, 30.0],
    "fates": ["used", "late", "lost"],
}


def panels(*folders):
    return {panel.name: panel for section in sections(compare_runs(folders)) for panel in section.panels}


@pytest.fixture
def timed(tmp_path, write_run):
    folder = write_run(tmp_path / "a", [0.2, 0.5, 0.8], simulated=600.0, bits=8)
    (folder / "about.json").write_text(json.dumps({"timeline": [ROUND, ROUND | {"round": 2}]}))
    return folder


def test_a_timeline_shows_what_clients_do_one_round_after_another(timed):
    """Minutes; the second client is late while it sends, from minute 4 to the end of the round at minute 5."""
    (figure,) = panels(timed)["timeline"].figures.values()
    bars = {trace["name"]: trace for trace in figure["data"]}
    spans = {
        name: [(y, base, base + x) for y, base, x in zip(bar["y"], bar["base"], bar["x"], strict=True)]
        for name, bar in bars.items()
    }
    assert spans["receives"] == [(0, 0, 1), (1, 0, 1), (2, 0, 0.5), (0, 5, 6), (1, 5, 6), (2, 5, 5.5)]
    assert spans["computes"] == [(0, 1, 2), (1, 1, 4), (0, 6, 7), (1, 6, 9)]
    assert spans["sends"] == [(0, 2, 3), (0, 7, 8)] and spans["waits"] == [(0, 3, 5), (0, 8, 10)]
    assert spans["is late"] == [(1, 4, 5), (1, 9, 10)]
    assert spans["is not waited for"] == [(2, 0.5, 5), (2, 5.5, 10)]
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [5, 10]
    assert figure["layout"]["meta"].startswith("round 1: 5.0 min, 3 of 50 clients shown; round 2")


def test_simulated_time_is_an_axis_in_a_unit_that_can_be_read(timed):
    (figure,) = panels(timed)["metric-time"].figures.values()
    assert figure["data"][0]["x"] == [10, 20, 30]
    assert figure["layout"]["xaxis"]["title"]["text"] == "simulated time (min)"


def test_the_distribution_of_staleness_is_there_where_lines_have_it(tmp_path, write_folder, timed):
    lines = [
        {"round": r, "uplink_bytes": r, "downlink_bytes": r, "test_accuracy": 0.5, "simulated_seconds": 1.0 * r}
        | ({"staleness": counts} if counts else {})
        for r, counts in ((1, {"0": 7, "1": 1}), (2, None), (3, {"2": 2}), (4, {"x": 3}), (5, [1]))
    ]
    folder = write_folder(tmp_path / "b", {"seed": 0}, lines)
    assert read_run(folder).staleness == {0: 7, 1: 1, 2: 2}
    (figure,) = panels(folder)["staleness"].figures.values()
    assert (figure["data"][0]["x"], figure["data"][0]["y"]) == ([0, 1, 2], [0.7, 0.1, 0.2])
    assert "mean age 0.50" in figure["data"][0]["hovertemplate"]
    assert "staleness" not in panels(timed)


def test_without_a_clock_no_panel_is_of_simulated_time(tmp_path, write_run, timed):
    made = panels(write_run(tmp_path / "b", [0.5, 0.6]))
    assert not {"timeline", "waiting", "metric-time", "gain-time"} & set(made)
    beside = panels(timed, tmp_path / "b")
    assert beside["metric-time"].figures and "gain-time" not in beside


def test_plotly_takes_every_figure(timed):
    graph = pytest.importorskip("plotly.graph_objects", reason="the report needs plotly")
    for name in ("timeline", "waiting", "metric-time"):
        for figure in panels(timed)[name].figures.values():
            assert len(graph.Figure(figure).data) == len(figure["data"])
