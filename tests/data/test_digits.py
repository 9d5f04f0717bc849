"""The digits are those of scikit-learn, read without importing it."""

import importlib.machinery
import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from fedjax8.data.sources.digits import _levels_and_labels, digits
from fedjax8.errors import UserError


def test_levels_and_labels_are_those_of_load_digits():
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    found = _levels_and_labels()
    np.testing.assert_array_equal(found[0], levels)
    np.testing.assert_array_equal(found[1], labels)
    assert [x.dtype for x in found] == [levels.dtype, labels.dtype]


def test_scikit_learn_is_not_imported():
    code = "import sys; from fedjax8.data.sources.digits import digits; digits(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_without_scikit_learn_or_with_a_damaged_file_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="install scikit-learn, or use the synthetic source"):
        digits()
    spec = importlib.machinery.ModuleSpec("sklearn", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="cannot be read"):
        digits()
    (tmp_path / "datasets" / "data").mkdir(parents=True)
    (tmp_path / "datasets" / "data" / "digits.csv.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\0nothing")
    with pytest.raises(UserError, match="cannot be read"):
        digits()
