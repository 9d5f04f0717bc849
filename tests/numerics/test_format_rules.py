"""Formats by layer: the first pattern that matches a layer, or a module around it, decides."""

import pytest

from fedjax8.errors import UserError
from fedjax8.numerics.format_rules import format_rules, layer_of, parse_rules
from fedjax8.numerics.formats import one_format


def test_the_first_pattern_that_matches_a_layer_or_a_module_around_it_decides():
    rules = format_rules("e4m3fnuz", {"a/b": "float32", "a": "e5m2", "*head": "float32", "*": "e4m3fn"})
    wanted = {
        "a/b": None,
        "a/b/lora": None,
        "a/c": "e5m2",
        "x/head": None,
        "x/y": "e4m3fn",
        "": "e4m3fn",
        "ab": "e4m3fn",
    }
    assert {path: fmt and fmt.name for path, fmt in zip(wanted, map(rules.of, wanted), strict=True)} == wanted
    assert [fmt.name for fmt in rules.formats] == ["e4m3fnuz", "e5m2", "e4m3fn"]
    assert format_rules(None, {"a": "float32"}).of("b").name == "e4m3fn"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"a": "e4m3"}, "unknown number format 'e4m3'; known are .*float32; did you mean 'e4m3fn'"),
        ({"a": None}, "rules map texts to names of formats; got 'a': None"),
        ({"": "e5m2"}, "rules map texts to names of formats"),
        ("a=e5m2", "rules map patterns to formats, such as"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules, message):
    with pytest.raises(UserError, match=message):
        format_rules(None, rules)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["Dense_0"], "takes PATTERN=FORMAT, such as Dense_0=float32, several with commas; got 'Dense_0'"),
        (["a=e5m2,"], "got ''"),
        (["a=e5m2", "a=float32"], "two rules for 'a'"),
    ],
)
def test_texts_that_are_no_rules_are_refused(texts, message):
    with pytest.raises(UserError, match=message):
        parse_rules(texts, "config.format_rules")


def test_a_root_layer_has_an_empty_path():
    assert layer_of("params/kernel") == ""
    assert format_rules(None, {"*": "e5m2"}).of("").name == "e5m2"


def test_a_pattern_that_no_part_of_a_run_can_match_is_refused_with_the_layers_there_are():
    rules = format_rules(None, {"a": "float32", "b": "e5m2"})
    with one_format():  # each pattern matches a layer of one of the two
        rules.record("up", ["a"])
        rules.record("down", ["b"])
    with one_format():  # the adapter has checked
        rules.record("adapter")
        rules.record("up", ["c"])
    with pytest.raises(UserError, match="pattern 'b' matches none of a, c"), one_format():
        rules.record("up", ["a", "c"])


def test_parts_with_other_rules_are_a_mix():
    with pytest.raises(UserError, match=r"up e4m3fn \(a=float32\), down e4m3fn; .*same format and rules"), one_format():
        format_rules(None, {"a": "float32"}).record("up", ["a"])
        format_rules(None).record("down")
