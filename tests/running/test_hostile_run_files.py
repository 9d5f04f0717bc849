"""Run folders whose files are damaged or hostile: compared as far as they can be, or refused in one line."""

import json

import numpy as np
import pytest

from fedjax8 import tune
from fedjax8.errors import UserError
from fedjax8.given import has_form
from fedjax8.results.comparison import compare_runs
from fedjax8.results.report import explanation, rows
from fedjax8.results.runs import read_run
from fedjax8.results.splits import accuracy_by_client, client_sizes, label_shares
from fedjax8.running import identity, workdir

SPLIT = {"clients": 2, "rows": 5, "classes": 2, "sizes": [2, 3]}
SPLIT |= {"labels": {"clients": [0, 1], "counts": [[1, 1], [0, 3]]}, "skew": None}
MESSAGE = {"direction": "up", "name": "model", "message_bytes": 4, "float32_bytes": 16, "leaves": {"params/a": 4}}
EXTRA = {
    "about.json": {"split": SPLIT, "messages": [MESSAGE]},
    "clients.json": {"rows": "test", "clients": [0, 1], "counts": [2, 3], "accuracy": [0.5, 1.0]},
}


@pytest.fixture
def folder(write_run, tmp_path):
    made = write_run(tmp_path / "run", [0.3, 0.5, 0.9], uplink={"name": "fp8"})
    for name, document in EXTRA.items():
        (made / name).write_text(json.dumps(document))
    return made


def look_at(folder):
    """Everything that a comparison reads; whether the folder was taken."""
    try:
        found = compare_runs([folder])
    except UserError as error:
        assert "\n" not in str(error)
        return False
    assert rows(found) and explanation(found)
    settings = [result.setting for result in found.results]
    for panel in (label_shares, client_sizes, accuracy_by_client):
        json.dumps(panel(settings).figures, allow_nan=False)
    return True


def damaged(rng, content):
    data, place = bytearray(content), int(rng.integers(len(content)))
    kind = int(rng.integers(5))
    if kind == 0:
        data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        data[place : place + 20] = b"\0" * 20
    else:  # another value in place of a number or name
        values = (b"null", b"-1", b"1e400", b"NaN", b"[]", b"{}", b'"x"', b"9" * 30, b"9" * 5000, b"[" * 90 + b"]" * 90)
        places = [i for i, byte in enumerate(data) if chr(byte) in "0123456789"]
        place = places[int(rng.integers(len(places)))] if places else place
        data[place : place + 1] = values[int(rng.integers(len(values)))]
    return bytes(data)


def fuzz(folder, cases):
    files = sorted(path for path in folder.iterdir() if path.is_file())
    whole, rng, taken = {path: path.read_bytes() for path in files}, np.random.default_rng(5), 0
    assert look_at(folder) and len(files) == 5
    for _ in range(cases):
        path = files[int(rng.integers(len(files)))]
        path.write_bytes(damaged(rng, whole[path]))
        taken += look_at(folder)
        try:
            identity.check_claim(folder, {"config": {"seed": 0}})
            workdir.read_metrics(folder, 3)
        except UserError as error:
            assert "\n" not in str(error)
        for file, content in whole.items():
            file.write_bytes(content)
    assert 0 < taken < cases


def test_damaged_run_folders_are_read_or_refused(folder):
    fuzz(folder, 60)


@pytest.mark.slow
def test_many_damaged_run_folders_are_read_or_refused(folder):
    fuzz(folder, 3000)


@pytest.mark.parametrize("name", ["round", "uplink_bytes", "downlink_bytes"])
@pytest.mark.parametrize("value", [2**63, 10**400, -1, True, 1.0, None, "1"])
def test_counts_that_cannot_be_are_named_with_their_line(name, value, folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {name: value})
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=rf"metrics.jsonl, line 2: {name} must be a whole number"):
        read_run(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("about.json", {"split": SPLIT | {"sizes": "many"}}),
        ("about.json", {"split": SPLIT | {"labels": {"clients": [0]}}}),
        ("about.json", {"messages": [{"direction": "up"}]}),
        ("about.json", {"messages": [MESSAGE | {"leaves": {"a": float("nan")}}]}),
        ("clients.json", {"accuracy": [0.5, "x"]}),
        ("clients.json", {"accuracy": [1e999]}),
    ],
)
def test_what_a_file_says_in_another_form_is_ignored_and_said(name, change, folder):
    (folder / name).write_text(json.dumps(EXTRA[name] | change))
    run = read_run(folder)
    assert (run.about if name == "about.json" else run.clients) == {}
    assert any(f"{name}: damaged, or of another version; ignored" in note for note in run.notes)
    assert look_at(folder)


def test_tables_of_labels_that_are_not_rectangular_are_left_out(folder):
    labels = {"clients": [0, 1], "counts": [[1, 1], [3]]}
    (folder / "about.json").write_text(json.dumps({"split": SPLIT | {"labels": labels}, "messages": []}))
    assert look_at(folder)


def test_brackets_within_brackets_are_no_config(folder):
    for depth in (100, 100_000):
        (folder / "config.json").write_text('{"config": ' + "[" * depth + "]" * depth + "}")
        assert look_at(folder)
        with pytest.raises(UserError, match=r"config\.json is not a fedjax8 config"):
            identity.check_claim(folder, {"config": {"seed": 0}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"k": 3}',
        '{"k": {"chunk": 4}}',
        '{"k": {"chunk": 0, "num_devices": 1}}',
        '{"k": {"chunk": 1e400, "num_devices": 1}}',
        '{"k": {"chunk": "4", "num_devices": 1}}',
        "[" * 100_000,
        "\0" * 50,
    ],
)
def test_damaged_settings_that_were_tuned_are_forgotten(text, tmp_path):
    kept = {"chunk": 4, "num_devices": 2}
    (tmp_path / "tuned.json").write_text(text)
    assert tune.remembered(tmp_path / "tuned.json") == {}
    (tmp_path / "tuned.json").write_text(json.dumps({"k": kept, "damaged": {"chunk": -1, "num_devices": 2}}))
    assert tune.remembered(tmp_path / "tuned.json") == {"k": kept}
    assert tune.remembered(tmp_path) == tune.remembered(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("value", "form", "fits"),
    [
        ({"a": 1}, {"a": int, "b?": str}, True),
        ({"a": 1, "b": 2}, {"a": int, "b?": str}, False),
        ({}, {"a": int}, False),
        ([1, 2.5], [float], True),
        ([1, None], [float], False),
        (None, (None, {"a": int}), True),
        (float("nan"), float, False),
        (float("inf"), float, False),
        (2**63, int, False),
        (2**63 - 1025, int, True),  # the next smaller float64
        (True, int, False),
        ({"x": 1, "y": 2}, {str: int}, True),
        ({"x": 1, "y": "2"}, {str: int}, False),
    ],
)
def test_forms_are_told_apart(value, form, fits):
    assert has_form(value, form) is fits
