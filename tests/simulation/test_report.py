import json
from html.parser import HTMLParser

import pytest

from fedjax8.simulation.comparison import Statistic, compare_runs
from fedjax8.simulation.report import COLUMNS, _bytes, explanation, html_page, rows

NAN = float("nan")
VOID = {"meta", "br", "hr", "img", "link", "input"}


def write_run(folder, accuracies, bytes_per_round, seed=0, loss=True, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": {"seed": seed, **config}}))
    rounds = len(accuracies)
    lines = [
        {
            "round": r,
            "uplink_bytes": r * bytes_per_round,
            "downlink_bytes": r * bytes_per_round,
            "test_accuracy": accuracy,
            **({"test_loss": 1 / r} if loss else {}),
        }
        for r, accuracy in enumerate(accuracies, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    done = {"rounds": rounds, "saving": 3.98, "seconds": 12.34, "finished": True}
    (folder / "summary.json").write_text(json.dumps(done))
    return folder


@pytest.fixture
def found(tmp_path):
    folders = [
        write_run(tmp_path / "a0", [0.2, 0.5, 0.8], 500_000, seed=0, uplink={"name": "<none> & more"}),
        write_run(tmp_path / "a1", [0.2, 0.8, 0.9], 500_000, seed=1, uplink={"name": "<none> & more"}),
        write_run(tmp_path / "b0", [0.1, 0.5, 0.85], 125_000, seed=0, uplink={"name": "fp8"}),
    ]
    return compare_runs(folders)


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects ids, attribute values and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.values, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.values += [(name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_row_shows_the_figures_worked_out_by_hand(found):
    first, second = (dict(zip(COLUMNS, row, strict=True)) for row in rows(found))
    # target 0.8: rounds 3 and 2 at 1 MB a round for the first, round 3 at 0.25 MB a round for the second
    assert first == {
        "setting": "uplink=<none> & more",
        "seeds": "2",
        "rounds to target": "2.5 ± 0.7",
        "bytes to target": "2.50 ± 0.71 MB",
        "gain": "1.00x",
        "best accuracy": "0.8500 ± 0.0707",
        "final accuracy": "0.8500 ± 0.0707",
        "rounds": "3",
        "bytes up": "1.50 MB",
        "bytes down": "1.50 MB",
        "saving": "3.98x",
        "seconds": "12.3",
    }
    assert (second["rounds to target"], second["bytes to target"], second["gain"]) == ("3", "750 kB", "3.33x")


def test_a_row_says_what_was_not_reached_and_by_how_many(tmp_path):
    a = write_run(tmp_path / "a", [0.2, 0.9], 10, seed=0)
    b = write_run(tmp_path / "b", [0.2, 0.3], 10, seed=1)
    (row,) = rows(compare_runs([a, b], target=0.5))
    assert row[2:5] == ["2 (1 of 2)", "40 B", "-"]
    (row,) = rows(compare_runs([a, b], target=1.0))
    assert row[2:5] == ["not reached", "not reached", "-"]


@pytest.mark.parametrize(
    ("num_bytes", "spread", "text"),
    [
        (0, NAN, "0 B"),
        (999, NAN, "999 B"),
        (1000, NAN, "1.00 kB"),
        (9994, NAN, "9.99 kB"),
        (9996, NAN, "10.0 kB"),
        (99_960, NAN, "100 kB"),
        (999_600, NAN, "1.00 MB"),
        (12_345_678, 0.0, "12.3 MB"),
        (2.5e9, 3e8, "2.50 ± 0.30 GB"),
        (7e18, NAN, "7000 PB"),
    ],
)
def test_bytes_are_shown_with_three_digits_in_decimal_units(num_bytes, spread, text):
    assert _bytes(Statistic(num_bytes, spread, 2)) == text


def test_the_explanation_says_how_the_target_was_chosen(found, tmp_path):
    assert "0.8, the lowest of the runs' best" in explanation(found)[0]
    assert "±" in explanation(found)[1] and "evaluations" not in explanation(found)[1]
    given = compare_runs([write_run(tmp_path / "c", [0.5], 1)], target=0.5, smooth=2)
    assert explanation(given)[0] == "Target: test accuracy 0.5, as given."
    assert "means of 2 evaluations" in explanation(given)[1] and "±" not in explanation(given)[1]


def test_the_page_is_well_formed_and_loads_nothing(found):
    text = html_page(found)
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.tags.count("svg") == 3
    assert len(page.ids) == len(set(page.ids))
    assert "http:" not in text and "https:" not in text and "//" not in text
    loads = {"script", "link", "img", "iframe", "object", "embed"}
    assert not loads & set(page.tags)
    references = [value for name, value in page.values if name in ("src", "href", "xlink:href")]
    assert references and all(value.startswith("#") for value in references)


def test_the_page_holds_every_cell_and_every_config_difference_escaped(found):
    text = html_page(found)
    page = Page(text)
    for cell in [*COLUMNS, *(cell for row in rows(found) for cell in row)]:
        assert cell in page.text
    assert "uplink.name" in page.text
    assert "<none>" not in text and "&lt;none&gt; &amp; more" in text
    for result in found.results:
        for run in result.setting.runs:
            assert str(run.path) in page.text


def test_warnings_are_shown_escaped_on_the_page(tmp_path):
    folder = write_run(tmp_path / "<b>", [0.5, 0.6], 10)
    (folder / "summary.json").unlink()
    text = html_page(compare_runs([folder]))
    assert "&lt;b&gt;: the run is unfinished" in text
    Page(text)


def test_a_plot_of_what_was_not_logged_is_left_out(tmp_path):
    page = Page(html_page(compare_runs([write_run(tmp_path / "a", [0.5, 0.6], 10, loss=False)])))
    assert page.tags.count("svg") == 2
