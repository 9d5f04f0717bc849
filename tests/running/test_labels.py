"""Name, tags and note of a run: given by flags, kept when it is resumed without them."""

import json

from fedjax8.running.labels import labeled, labels


def test_labels_are_those_given_with_each_tag_once():
    assert labels() == {}
    assert labels("base", ["a", " b ", "a"], "a note") == {"name": "base", "tags": ["a", "b"], "note": "a note"}


def test_a_resumed_run_keeps_its_labels_unless_others_are_given(tmp_path):
    record = {"config": {"seed": 0}}
    assert labeled(record, {}, tmp_path) == labeled(record, {}, None) == record
    first = labeled(record, labels("base", ["a"]), tmp_path)
    assert first == {**record, "labels": {"name": "base", "tags": ["a"]}}
    (tmp_path / "config.json").write_text(json.dumps(first))
    assert labeled(record, {}, tmp_path) == first
    changed = labeled(record, labels(tags=["b"], note="why"), tmp_path)
    assert changed["labels"] == {"name": "base", "tags": ["b"], "note": "why"}
    assert labeled(record, labels("", [""]), tmp_path) == record  # taken away again


def test_labels_that_cannot_be_read_are_as_none(tmp_path):
    for text in ("{", '{"labels": "x"}', '{"labels": {"tags": 3}}'):
        (tmp_path / "config.json").write_text(text)
        assert labeled({"config": {}}, labels("a"), tmp_path) == {"config": {}, "labels": {"name": "a"}}
