"""The clock against hours of a published table, and the table of a page against the script that prints it."""

import pathlib

import pytest

TOKENS = (25e9, 100e9, 250e9)
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "time.md"


@pytest.mark.parametrize("tokens", TOKENS)
def test_hours_at_a_gigabit_are_those_published(load_script, tokens):
    script = load_script("published_times")
    said, found = script.PUBLISHED[tokens], script.by_the_clock(tokens)
    assert found.data_parallel == pytest.approx(said.data_parallel, rel=0.02)
    assert found.streaming == pytest.approx(said.streaming, rel=0.02)


def test_the_table_of_the_page_is_the_one_that_is_printed(load_script, capsys):
    load_script("published_times").main()
    assert capsys.readouterr().out in PAGE.read_text()
