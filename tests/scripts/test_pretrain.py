"""Central pre-training: on some classes of a real set, into a file that the adapter `pretrained` starts from."""

import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.adapters.pretrained import pretrained
from fedjax8.errors import UserError
from fedjax8.models import mlp
from fedjax8.models.pretrained import check_saving, load_params

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "pretrain.py"
CONFIG = """
from fedjax8.config import base_config, component

def get_config():
    config = base_config()
    config.model = component("mlp", hidden=(99,))
    return config
"""


def test_a_model_learns_some_classes_and_is_written_for_the_adapter_pretrained(tmp_path):
    (tmp_path / "own.py").write_text(CONFIG)
    file = tmp_path / "new" / "model.safetensors"
    settings = ["--data=digits", "--classes=7,1,4", "--set=model.hidden=(8,)", "--epochs=6", "--batch=32"]
    done = subprocess.run(
        [sys.executable, SCRIPT, f"--out={file}", f"--config={tmp_path / 'own.py'}", "--learning_rate=0.01", *settings],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("547 parameters")  # 64 * 8 + 8 + 8 * 3 + 3
    accuracies = [float(found) for found in re.findall(r"test accuracy ([\d.]+)", done.stdout)]
    assert len(accuracies) == 6 and accuracies[-1] > 0.9  # a third by chance
    model = pretrained(mlp((8,), num_classes=3), str(file))
    batch = {"x": jnp.zeros((2, 8, 8, 1)), "y": jnp.zeros(2, jnp.int32)}
    start = trees.named_leaves(model.init(jax.random.key(1), batch).params)
    for name, leaf in trees.named_leaves(load_params(file)).items():
        np.testing.assert_array_equal(start[name], leaf)


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "a folder"), ("file/x", "cannot make")],
)
def test_what_cannot_be_written_is_said_before_training(tmp_path, name, message):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=re.escape(message)):
        check_saving(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_pretraining_begins_with_that_check(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, f"--out={tmp_path}"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("pretrain: cannot write") and len(done.stderr.splitlines()) == 1
