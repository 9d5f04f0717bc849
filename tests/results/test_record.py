"""How a run is judged and what a person called it, read from its `config.json`."""

import pytest

from fedjax8.directions import CLASSIFICATION
from fedjax8.results.record import Labels
from fedjax8.results.runs import read_run, read_settings

LINES = [{"round": 1, "uplink_bytes": 1, "downlink_bytes": 1}]


def test_task_and_labels_stand_beside_the_config_and_make_no_other_setting(tmp_path, write_folder):
    task = {"name": "regression", "metric": "mae", "directions": {"mae": "lower"}}
    first = write_folder(tmp_path / "a", {"seed": 0}, LINES, task=task, labels={"name": "base", "tags": ["x", "y"]})
    second = write_folder(tmp_path / "b", {"seed": 1}, LINES, task=task, labels={"note": "again"})
    run = read_run(first)
    assert (run.measures.metric, run.measures.directions) == ("mae", {"mae": "lower"})
    assert run.labels == Labels("base", ("x", "y"), "")
    settings, warnings = read_settings([first, second])
    assert [len(setting.runs) for setting in settings] == [2] and warnings == []
    plain = read_run(write_folder(tmp_path / "c", {"seed": 0}, LINES))
    assert (plain.measures, plain.labels) == (CLASSIFICATION, Labels())


@pytest.mark.parametrize(
    ("document", "note"),
    [
        ({"task": "mae"}, "its task is damaged"),
        ({"task": {"metric": "mae", "directions": {"mae": "down"}}}, "its task is damaged"),
        ({"labels": {"tags": "x"}}, "its labels are damaged"),
    ],
)
def test_damaged_parts_are_left_out_with_a_note(tmp_path, document, note, write_folder):
    run = read_run(write_folder(tmp_path / "a", {"seed": 0}, LINES, **document))
    assert (run.measures, run.labels) == (CLASSIFICATION, Labels())
    assert len(run.notes) == 1 and note in run.notes[0]


def test_a_name_that_all_seeds_share_is_the_settings_label_with_the_fields_where_it_is_anothers_too(
    tmp_path, write_folder
):
    def run(folder, name, **config):
        labels = {"labels": {"name": name}} if name else {}
        return write_folder(tmp_path / folder, {"seed": 0, **config}, LINES, **labels)

    full, eight, four = run("a", "full", bits=32), run("b", "", bits=8), run("c", "small", bits=4)
    assert [s.label for s in read_settings([full, eight, four])[0]] == ["full", "bits=8", "small"]
    again = run("d", "small", bits=2)
    assert [s.label for s in read_settings([four, again])[0]] == ["small (bits=4)", "small (bits=2)"]
    other_seed = write_folder(tmp_path / "e", {"seed": 1, "bits": 32}, LINES, labels={"name": "other"})
    assert [s.label for s in read_settings([full, other_seed, eight])[0]] == ["bits=32", "bits=8"]


def test_the_file_of_means_over_seeds_is_no_run_and_no_warning(tmp_path, write_folder):
    write_folder(tmp_path / "seeds" / "seed-0", {"seed": 0}, LINES)
    (tmp_path / "seeds" / "seeds.json").write_text("{}")
    settings, warnings = read_settings((tmp_path / "seeds").iterdir())
    assert (len(settings), warnings) == (1, [])


def test_labels_are_shown_in_one_line_without_control_characters(tmp_path, write_folder):
    labels = {"name": "a\n\tb \x1b[31mred", "tags": ["p\r\nq"], "note": "日本 $x$ é"}
    found = read_run(write_folder(tmp_path / "a", {}, labels=labels)).labels
    assert found == ("a b [31mred", ("p q",), "日本 $x$ é")
    assert read_settings([tmp_path / "a"], ["p\r\nq"])[0]
