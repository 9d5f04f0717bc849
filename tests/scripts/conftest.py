"""The benchmark's files import each other by name, as scripts of one folder do."""

import importlib
import pathlib

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def load_script(monkeypatch):
    """`load_script(name)`: the module scripts/`name`.py."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module
