"""The examples in the docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import fedjax8.numerics

MODULES = sorted(m.name for m in pkgutil.iter_modules(fedjax8.numerics.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_print_what_they_say(name):
    module = importlib.import_module(f"fedjax8.numerics.{name}")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    if name not in ("bits",):  # internals, without examples
        assert result.attempted > 0
