"""Components are found by file name, or by module and name."""

import sys

import pytest

from fedjax8.errors import UserError
from fedjax8.lookup import component_names, find, suggest


def test_a_file_dropped_into_a_package_is_a_component(tmp_path, monkeypatch):
    package = tmp_path / "plugins_for_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text("def mine(x=1):\n    return x\n\n\nEXAMPLES = ({},)\n")
    (package / "helper.py").write_text("def helper():\n    return 0\n")
    (package / "_hidden.py").write_text("EXAMPLES = ()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert component_names("plugins_for_test") == ["mine"]
    assert find("mine", "plugins_for_test")(x=3) == 3
    assert find("plugins_for_test.helper:helper")() == 0
    with pytest.raises(UserError, match=r"no 'mime'.*allowed are mine; did you mean 'mine'"):
        find("mime", "plugins_for_test")
    del sys.modules["plugins_for_test"]


@pytest.mark.parametrize("name", ["no.such.module:f", "fedjax8.errors:nothing"])
def test_an_object_that_cannot_be_loaded_is_a_user_error(name):
    with pytest.raises(UserError, match="cannot load"):
        find(name)


def test_a_wild_guess_gets_no_suggestion():
    assert suggest("zzz", ["fp8", "none"]) == ""
