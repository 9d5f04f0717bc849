"""The benchmark's files import each other by name, as scripts of one folder do."""

import importlib
import pathlib
import sys

import pytest
from absl import flags

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def load_script(monkeypatch):
    """`load_script(name)`: the module scripts/`name`.py; its flags, which other commands have too, go after it."""
    monkeypatch.syspath_prepend(SCRIPTS)
    yield importlib.import_module
    defined = flags.FLAGS.flags_by_module_dict()
    for name in {path.stem for path in SCRIPTS.glob("*.py")}:
        sys.modules.pop(name, None)
        for flag in defined.get(name, ()):
            delattr(flags.FLAGS, flag.name)
