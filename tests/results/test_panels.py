"""The panels of the report, as plotly reads them."""

import json

import pytest

from fedjax8.results.comparison import compare_runs
from fedjax8.results.panel import short
from fedjax8.results.panels import LEAST, POINTS, layer, sections
from fedjax8.results.report import explanation
from fedjax8.results.splits import splits

SPLIT = {
    "clients": 3,
    "rows": 60,
    "classes": 2,
    "sizes": [10, 30, 20],
    "labels": {"clients": [0, 1, 2], "counts": [[10, 0], [15, 15], [5, 15]]},
    "skew": {"hellinger_mean": 0.25, "hellinger_max": 0.5, "js_mean": 0.125},
}
MESSAGES = [
    {
        "direction": "up",
        "name": "model",
        "message_bytes": 330,
        "float32_bytes": 1240,
        "leaves": {"params/Dense_0/kernel": 300, "params/Dense_0/bias": 20, "params/Dense_1/kernel": 10},
    }
]


@pytest.fixture
def found(tmp_path, write_run):
    full, eight = {"name": "<none>"}, {"name": "fp8"}
    folders = [
        write_run(tmp_path / "a0", [0.2, 0.5, 0.8], (600, 400), seed=0, uplink=full, partition={"name": "iid"}),
        write_run(tmp_path / "a1", [0.4, 0.7, 0.8], (600, 400), seed=1, uplink=full, partition={"name": "iid"}),
        write_run(tmp_path / "b0", [0.1, 0.5, 0.6], (150, 100), seed=0, uplink=eight, partition={"name": "iid"}),
    ]
    for folder in folders:
        (folder / "about.json").write_text(json.dumps({"split": SPLIT, "messages": MESSAGES}))
    (folders[2] / "clients.json").write_text(json.dumps({"rows": "dealt", "accuracy": [0.5, 0.25, 1.0]}))
    return compare_runs(folders, margin=0.2)  # their best accuracies are 0.8 and 0.6


def panels(found):
    return {panel.name: panel for section in sections(found) for panel in section.panels}


def traces(found, name):
    (figure,) = panels(found)[name].figures.values()
    return figure["data"]


def test_a_line_is_the_mean_over_seeds_with_its_deviation_and_round_beside_each_point(found):
    first, second = traces(found, "metric-bytes")
    assert first["x"] == [1000, 2000, 3000]
    assert first["y"] == [0.3, 0.6, 0.8]
    # two values 0.2 apart deviate by 0.2 / sqrt(2) = 0.1414, equal ones by 0
    assert first["customdata"] == [[0.1414, 1], [0.1414, 2], [0, 3]]
    assert second["customdata"] == [[None, 1], [None, 2], [None, 3]]
    assert "±" in first["hovertemplate"] and "±" not in second["hovertemplate"]
    assert traces(found, "metric-rounds")[0]["x"] == [1, 2, 3]
    assert traces(found, "metric-seconds")[0]["x"] == [0.5, 1, 1.5]


def test_a_setting_has_one_color_in_all_panels(found):
    for index, color in ((0, "#0072B2"), (1, "#D55E00")):
        seen = set()
        for name in ("metric-bytes", "loss-rounds", "front", "directions", "layers-up", "gain", "client-accuracy"):
            for trace in traces(found, name):
                if trace.get("meta") == index and trace["type"] != "bar" and trace["marker"].get("symbol") != "line-ns":
                    seen.add(trace["line"]["color"] if "color" in trace.get("line", {}) else trace["marker"]["color"])
                elif trace.get("meta") == index and trace["type"] == "bar":
                    seen.add(trace["marker"]["color"])
        assert seen == {color}


def test_bytes_are_stacked_by_direction_with_what_float32_would_cost(found):
    bars = {(t["meta"], t["type"], t["marker"].get("opacity")): t["x"] for t in traces(found, "directions")}
    # three rounds of 600 up and 400 down; these runs say that they saved 4x
    assert bars[0, "bar", 1.0] == [1800] and bars[0, "bar", 0.45] == [1200]
    assert bars[0, "scatter", None] == [12000]
    assert bars[1, "bar", 1.0] == [450] and bars[1, "scatter", None] == [3000]


def test_bytes_of_a_message_are_summed_by_layer(found):
    dots = traces(found, "layers-up")[0]
    assert dots["x"] == [330, 320, 10]
    assert [name for (name,) in dots["customdata"]] == ["<b>whole message</b>", "Dense_0", "Dense_1"]
    assert "about.json" in panels(found)["layers-down"].absent
    assert layer("params/Dense_0/kernel") == "Dense_0" and layer("values") == "values"
    assert layer("update/stem/conv/kernel") == "stem/conv"


def test_the_front_is_of_final_accuracies_against_all_bytes(found):
    line, first, second = traces(found, "front")
    assert "meta" not in line and line["x"] == []
    assert (first["x"], first["y"], second["x"], second["y"]) == ([3000], [0.8], [750], [0.6])
    assert first["name"] == "uplink=&lt;none&gt;"


def test_a_split_that_runs_share_is_shown_once_with_shares_of_labels_and_sizes(found):
    (name,) = splits([result.setting for result in found.results])
    assert name == "iid, 3 clients, seed 0"
    (heat,) = traces(found, "labels")
    assert heat["z"] == [[1.0, 0.5, 0.25], [0.0, 0.5, 0.75]]
    assert heat["customdata"] == [[10, 15, 5], [0, 15, 15]]
    assert traces(found, "sizes")[0]["y"] == [30, 20, 10]
    text = panels(found)["labels"].figures[name]["layout"]["meta"]
    assert "Hellinger 0.25 on average, 0.50 at most" in text


def test_accuracy_by_client_is_of_the_settings_that_have_it(found):
    (box,) = traces(found, "client-accuracy")
    assert (box["meta"], box["x"]) == (1, [0.25, 0.5, 1.0])


def test_the_distribution_over_clients_is_put_into_words(found):
    """Of 1/4, 1/2 and 1: mean 7/12, variance 0.0972, Jain's index 1.75^2 / (3 * 1.3125)."""
    words = "accuracy mean 58.33%, deviation 31.18%, worst tenth 25.00%, fairness 0.7778"
    panel = panels(found)["client-accuracy"]
    assert panel.figures[""]["layout"]["meta"] == f"{found.results[1].setting.label}: {words}"
    assert "held-out (dealt by its labels) rows" in panel.note
    told = [sentence for sentence in explanation(found) if "own models" in sentence]
    assert told == [f"Clients' own models, {found.results[1].setting.label}: {words}."]


def test_what_codecs_measure_has_a_panel_each_and_all_zeros_are_said(tmp_path, write_folder):
    lines = [
        {"round": r, "uplink_bytes": r, "downlink_bytes": r, "test_accuracy": 0.5, "uplink_clipped_fraction": 0.0}
        | {"uplink_quantization_error": 0.1 / r, "epsilon": float(r)}
        for r in (1, 2)
    ]
    made = panels(compare_runs([write_folder(tmp_path / "a", {"seed": 0}, lines)]))
    (figure,) = made["uplink-quantization-error"].figures.values()
    assert figure["data"][0]["y"] == [0.1, 0.05] and figure["layout"]["yaxis"]["type"] == "log"
    assert made["uplink-clipped-fraction"].absent == "Clipped values: none, in any round."
    assert list(made["metrics"].figures) == ["epsilon"]


def test_a_run_that_logged_little_has_panels_that_say_what_is_missing(tmp_path, write_run):
    folder = write_run(tmp_path / "a", [0.5, 0.6], loss=False, timed=False)
    made = panels(compare_runs([folder]))
    drawn = {name for name, panel in made.items() if panel.figures}
    assert drawn == {"metric-bytes", "metric-rounds", "directions"}
    assert all(panel.absent for name, panel in made.items() if name not in drawn)
    assert made["metric-seconds"].absent == "No run logged round_seconds."


def test_long_runs_are_thinned_but_keep_their_ends(tmp_path, write_folder):
    names = [f"metric{i}" for i in range(994)]
    lines = [
        {"round": r, "uplink_bytes": r, "downlink_bytes": r, "test_accuracy": r / 1000} | dict.fromkeys(names, r)
        for r in range(1, 201)
    ]
    made = panels(compare_runs([write_folder(tmp_path / "a", {"seed": 0}, lines)], smooth=1))
    (figure,) = made["metric-rounds"].figures.values()
    (line,) = figure["data"]
    # 1000 metrics and panels share the points: 60 each; the first and the last are among them
    assert LEAST < len(line["x"]) <= POINTS // 1000
    assert (line["x"][0], line["x"][-1]) == (1, 200)


def test_numbers_are_written_as_short_as_they_are_read():
    assert short([0.123456, 12.0, float("nan"), 1_234_567.0]) == [0.12346, 12, None, 1_234_600]


def test_plotly_takes_every_figure(found):
    graph = pytest.importorskip("plotly.graph_objects", reason="the report needs plotly")
    for panel in panels(found).values():
        for figure in panel.figures.values():
            assert len(graph.Figure(figure).data) == len(figure["data"])


def test_gains_beyond_the_margin_are_no_curves_and_the_panel_says_so(tmp_path, write_run):
    good = write_run(tmp_path / "good", [0.4, 0.978], (10_000, 0), bits=32)
    eight = write_run(tmp_path / "eight", [0.4, 0.97], (2_500, 0), bits=8)
    poor = write_run(tmp_path / "poor", [0.3, 0.418], (10, 0), bits=1)
    made = panels(compare_runs([good, poor, eight]))["gain"]
    assert [trace["meta"] for trace in made.figures[""]["data"]] == [2]
    assert "not reached, not within 1 point of its best: bits=1" in made.note
    none = panels(compare_runs([good, poor]))["gain"]
    assert not none.figures and none.absent.endswith("not reached, not within 1 point of its best: bits=1.")
