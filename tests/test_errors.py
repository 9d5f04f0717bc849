"""A collector of mistakes: what fails is told, what needs it is not tried, and everything else is."""

import pytest

from fedjax8 import cli
from fedjax8.errors import FAILED, Mistakes, UserError, UserErrors, mistakes_of


def fail(text):
    raise UserError(text)


def test_all_mistakes_are_raised_at_the_end_of_the_block():
    with pytest.raises(UserErrors) as caught, Mistakes() as mistakes:
        assert mistakes.attempt(fail, "first") is FAILED
        assert mistakes.attempt(int, "3") == 3
        mistakes.attempt(fail, "second")
        mistakes.attempt(fail, "first")
    assert caught.value.mistakes == ("first", "second")


def test_one_mistake_is_an_ordinary_user_error():
    with pytest.raises(UserError, match=r"^only$") as caught, Mistakes() as mistakes:
        mistakes.attempt(fail, "only")
    assert not isinstance(caught.value, UserErrors)
    assert caught.value.mistakes == ("only",)


def test_what_needs_something_that_failed_is_not_tried():
    tried = []
    with pytest.raises(UserError), Mistakes() as mistakes:
        failed = mistakes.attempt(fail, "x")
        assert mistakes.attempt(tried.append, failed) is FAILED
        assert mistakes.attempt(dict, a=failed.some.attribute) is FAILED
        assert mistakes.attempt(failed) is FAILED
        mistakes.attempt(tried.append, 1)
    assert tried == [1]


def test_other_exceptions_are_not_mistakes():
    with pytest.raises(ZeroDivisionError), Mistakes() as mistakes:
        mistakes.attempt(fail, "x")
        mistakes.attempt(lambda: 1 // 0)


def test_a_path_is_named_once():
    for text, said in (("b is 3", "config.a: b is 3"), ("config.a.0: b is 3", "config.a.0: b is 3")):
        for error in (ValueError(text), UserError(text)):
            with pytest.raises(UserError, match=f"^{said}$"), mistakes_of("config.a"):
                raise error


def test_several_mistakes_are_printed_as_a_numbered_list_and_status_2(capsys):
    assert cli.report(UserErrors(["one  thing", "another"])) == 2
    assert capsys.readouterr().err == "fedjax8: 2 mistakes; nothing was run\n  1. one  thing\n  2. another\n"
    assert cli.report(UserError("one\nthing")) == 2
    assert capsys.readouterr().err == "fedjax8: one thing\n"
