"""The files of a run: whole or absent, cut back to the checkpoint, held by one run at a time."""

import json

import pytest

from fedjax8.config import component, plain
from fedjax8.errors import UserError
from fedjax8.running import identity, workdir


def write(directory, *texts):
    (directory / "metrics.jsonl").write_text("".join(texts))


def line(round_number, **more):
    return json.dumps({"round": round_number, **more}) + "\n"


def test_lines_after_the_checkpoint_and_half_a_line_are_left_out(tmp_path):
    write(tmp_path, line(1), line(2), line(3), '{"round": 4, "tr')
    for last_round in (2, 3):
        found = workdir.read_metrics(tmp_path, last_round)
        assert [x["round"] for x in found.lines] == list(range(1, last_round + 1))
        assert found.missing == [] and not found.damaged


DAMAGES = {
    "empty": ("", [], [1, 2, 3, 4], False),
    "cut": (line(1) + line(2), [1, 2], [3, 4], False),
    "half a line": (line(1) + line(2) + '{"round": 3, "tr', [1, 2], [3, 4], True),
    "a line gone": (line(1) + line(3) + line(4), [1, 3, 4], [2], False),
    "garbage": (line(1) + "%$\n" + line(3) + line(4), [1, 3, 4], [2], True),
    "garbage between": (line(1) + line(2) + "[[[" * 10**5 + "\n" + line(3) + line(4), [1, 2, 3, 4], [], True),
    "zeros": (line(1) + "\0" * 50 + "\n" + line(3) + line(4), [1, 3, 4], [2], True),
    "joined": (line(1) + line(2).strip() + line(3) + line(4), [1, 4], [2, 3], True),
    "no round": (line(1) + line("2") + line(True) + "[2]\n" + line(3) + line(4), [1, 3, 4], [2], True),
    "twice": (line(1) + line(1) + line(2) + line(3) + line(4), [1, 2, 3, 4], [], True),
    "shuffled": (line(2) + line(1) + line(4) + line(3), [1, 2, 3, 4], [], False),
    "no text": (line(1).encode() + b"\xff\xfe\n" + (line(3) + line(4)).encode(), [1, 3, 4], [2], True),
}


@pytest.mark.parametrize(("content", "rounds", "missing", "damaged"), DAMAGES.values(), ids=DAMAGES)
def test_what_can_be_read_of_damaged_metrics_is_kept(tmp_path, content, rounds, missing, damaged):
    (tmp_path / "metrics.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    found = workdir.read_metrics(tmp_path, 4)
    assert [x["round"] for x in found.lines] == rounds
    assert (found.missing, found.damaged) == (missing, damaged)


def test_metrics_that_are_gone_or_a_folder_have_no_lines(tmp_path):
    assert workdir.read_metrics(tmp_path, 2) == ([], [1, 2], False)
    (tmp_path / "metrics.jsonl").mkdir()
    assert workdir.read_metrics(tmp_path, 2) == ([], [1, 2], True)
    (tmp_path / "metrics.jsonl" / "thesis.tex").touch()
    assert workdir.set_metrics_aside(tmp_path) == tmp_path / "unreadable-metrics.jsonl"
    assert (tmp_path / "unreadable-metrics.jsonl" / "thesis.tex").exists()
    workdir.rewrite_metrics(tmp_path, [{"round": 1}])
    assert (tmp_path / "metrics.jsonl").read_text() == line(1)


def test_rounds_are_named_as_ranges():
    assert workdir.ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert workdir.ranges(list(range(1, 40, 2))) == "1, 3, 5, 7, 9, 11, 13, 15, 17, 19, ..."


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
    assert identity.differences(old, new) == [
        "hidden: [1, 2] -> (unset)",
        "seed: 0 -> 1",
        "uplink.format: (unset) -> e5m2",
    ]


def test_a_run_is_not_gone_on_with_by_rules_in_another_order(tmp_path):
    """The first match wins, so that Dense_0 is in float32 by the one and in e5m2 by the other."""
    rules = {"Dense_0": "float32", "Dense_*": "e5m2"}
    made, other = ({"adapter": plain(component("qat", rules=r))} for r in (rules, dict(reversed(rules.items()))))
    identity.check_claim(tmp_path, {"config": made})
    identity.check_claim(tmp_path, {"config": made})
    with pytest.raises(UserError, match=r"another config \(adapter.rules.Dense_0 before adapter.rules.Dense_\* -> "):
        identity.check_claim(tmp_path, {"config": other})


def test_a_foreign_config_file_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a fedjax8 config"):
        identity.check_claim(tmp_path, {"config": {}})
    assert (tmp_path / "config.json").read_text() == "[]"


@pytest.mark.parametrize("content", ["[" * 10**5, '{"config": 3}', "", "\0\0", '{"config": '])
def test_a_damaged_config_file_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"is not a fedjax8 config .*checkpoints know their config") as refused:
        identity.check_claim(tmp_path, {"config": {}})
    assert "\n" not in str(refused.value)


def test_other_data_is_refused_and_other_devices_and_versions_are_listed(tmp_path):
    record = {"config": {"seed": 0}, "data": {"train.x": "a"}, "versions": {"jax": "1"}, "devices": ["cpu:cpu"] * 2}
    identity.check_claim(tmp_path, record)
    identity.check_claim(tmp_path, record)
    with pytest.raises(UserError, match=r"a run on other data \(train.x: a -> b\); put back the data") as refused:
        identity.check_claim(tmp_path, record | {"data": {"train.x": "b"}})
    assert "is not a fedjax8 config" not in str(refused.value)
    other = record | {"devices": ["cpu:cpu"], "versions": {"jax": "2"}}
    assert identity.says_of_others(record, other) == ["devices: 2 cpu:cpu -> 1 cpu:cpu", "versions.jax: 1 -> 2"]
    assert identity.says_of_others(record, record) == []
    identity.write_part(tmp_path, other, 4, ["versions.jax: 1 -> 2"])
    kept = json.loads((tmp_path / "config.json").read_text())
    first = {"after_round": 0, "versions": {"jax": "1"}, "devices": ["cpu:cpu"] * 2}
    second = {"after_round": 4, "versions": {"jax": "2"}, "devices": ["cpu:cpu"], "changed": ["versions.jax: 1 -> 2"]}
    assert kept == other | {"parts": [first, second]}
    identity.write_part(tmp_path, record, 4, [])  # the rounds after 4 were lost, and are run again
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["parts"] == [first, first | {"after_round": 4}]
