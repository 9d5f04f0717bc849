"""The examples in the docstrings of the package run and print what they say."""

import doctest
import importlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "fedjax8"
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if ">>>" in file.read_text()]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_docstring_examples_print_what_they_say(file):
    module = importlib.import_module(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts))
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    assert result.attempted > 0


def test_every_public_module_of_numbers_has_an_example():
    numerics = {file.stem for file in (PACKAGE / "numerics").glob("*.py")}
    internal = {"__init__", "bits"}
    assert numerics - internal == {file.stem for file in FILES if file.parent.name == "numerics"}
