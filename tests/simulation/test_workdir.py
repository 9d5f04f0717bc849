"""The files of a run: whole or absent, cut back to the checkpoint, held by one run at a time."""

import json

import pytest

from fedjax8.errors import UserError
from fedjax8.simulation import workdir


def write(directory, *texts):
    (directory / "metrics.jsonl").write_text("".join(texts))


def line(round_number, **more):
    return json.dumps({"round": round_number, **more}) + "\n"


def test_lines_after_the_checkpoint_and_half_a_line_are_left_out(tmp_path):
    write(tmp_path, line(1), line(2), line(3), '{"round": 4, "tr')
    assert [x["round"] for x in workdir.read_metrics(tmp_path, 2)] == [1, 2]
    assert [x["round"] for x in workdir.read_metrics(tmp_path, 3)] == [1, 2, 3]


@pytest.mark.parametrize("texts", [[], [line(1)], [line(1), line(3)], [line(1), line(1), line(2)]])
def test_a_missing_or_repeated_round_before_the_checkpoint_is_an_error(tmp_path, texts):
    write(tmp_path, *texts)
    with pytest.raises(UserError, match="does not hold rounds 1 to 2"):
        workdir.read_metrics(tmp_path, 2)


def test_nan_and_infinity_become_null_so_that_the_file_stays_json(tmp_path):
    workdir.append_metrics(tmp_path, {"round": 1, "loss": float("nan"), "nested": {"x": float("inf")}})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"round": 1, "loss": None, "nested": {"x": None}}


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    with (
        workdir.locked(tmp_path),
        pytest.raises(UserError, match="another run is working"),
        workdir.locked(tmp_path),
    ):
        pytest.fail("both held the lock")
    with workdir.locked(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_a_directory_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), workdir.locked(tmp_path / "file" / "run"):
        pytest.fail("made a directory under a file")


def test_differences_name_added_changed_and_missing_fields():
    old = {"seed": 0, "uplink": {"name": "fp8"}, "hidden": [1, 2]}
    new = {"seed": 1, "uplink": {"name": "fp8", "format": "e5m2"}}
    assert workdir.differences(old, new) == [
        "hidden: [1, 2] -> (unset)",
        "seed: 0 -> 1",
        "uplink.format: (unset) -> e5m2",
    ]


def test_a_foreign_config_file_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a fedjax8 config"):
        workdir.claim(tmp_path, {"config": {}})
    assert (tmp_path / "config.json").read_text() == "[]"
