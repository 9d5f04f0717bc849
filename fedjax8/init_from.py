"""Models that start from those of other runs: `config.init_from`.

    runs/a                the last model of the run: its model.safetensors, or its newest checkpoint if it went further
    runs/a@40             its model after round 40, of which there must be a checkpoint
    FILE.safetensors      a file of `LoadedRun.export`, `models.save_model` or `models.save_params`

Every leaf of the new model is in the file and every leaf of the file in the model: parameters, state, frozen
parameters, clips. Where they are those of the model without its adapter, the adapter is put around them, and starts its
own parts (clips, adapters' parameters) as ever.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fedjax8 import trees
from fedjax8.cli import path_of
from fedjax8.data.digest import array_digest
from fedjax8.errors import UserError
from fedjax8.models.pretrained import header_of
from fedjax8.models.saved import FILE, check_same_leaves, model_readers
from fedjax8.running.reading import saved_rounds
from fedjax8.types import Model, Variables


class Start(NamedTuple):
    """The model that a run starts from."""

    words: str
    """Its place, for messages."""
    shapes: Mapping[str, tuple[int, ...]]
    """By path of a leaf, `params/Dense_0/kernel`."""
    read: Callable[[str], np.ndarray]
    """The values of a leaf, float32."""

    def digest(self) -> str:
        """A text that is the same for equal models alone."""
        found = hashlib.blake2b(digest_size=8)
        for name in sorted(self.shapes):
            found.update(f"{name} {array_digest(self.read(name))}\n".encode())
        return f"model of {len(self.shapes)} arrays {found.hexdigest()}"


def open_start(text: str, data_dir: str | None = None) -> Start:
    """The model that `config.init_from` names; its file's header is read.

    Raises UserError where there is none. `data_dir` is where the data of a run lie whose checkpoint is read.
    """
    folder, at, number = text.rpartition("@")
    whole = path_of(text)
    if at and number.isdecimal() and not whole.exists():
        return _of_run(folder, int(number), data_dir)
    if not whole.is_dir():
        return _of_file(str(whole))
    file, saved = whole / FILE, saved_rounds(whole)
    if not file.is_file() or (saved and saved[-1] > round_of(file)):
        return _of_run(text, None, data_dir)
    return _of_file(str(file))


def round_of(file: Path) -> int:
    """The round in the metadata of a run's file; 0 for a file without one."""
    text = header_of(file).metadata.get("round", "")
    return int(text) if text.isdecimal() else 0


def _of_file(path: str) -> Start:
    if not path_of(path).is_file():
        raise UserError(
            f"config.init_from: no file {path!r}; give the folder of a run, such as runs/a or runs/a@40 for its round "
            "40, or a safetensors file"
        )
    readers = model_readers(path_of(path))
    return Start(path, {name: shape for name, (shape, _) in readers.items()}, lambda name: readers[name][1]())


def _of_run(folder: str, number: int | None, data_dir: str | None) -> Start:
    from fedjax8.loading import load

    variables = load(folder, data_dir).variables(number)
    leaves = {name: np.asarray(leaf) for name, leaf in trees.named_leaves(variables._asdict()).items()}
    words = folder if number is None else f"{folder} after round {number}"
    return Start(words, {name: leaf.shape for name, leaf in leaves.items()}, lambda name: leaves[name])


def started(model: Model, around: Callable[[Model], Model], start: Start) -> Model:
    """`around(model)` with a start's values as its initial ones.

    Args:
      model: a model without its adapter.
      around: the adapter.
      start: has the values of all leaves of `around(model)`, or of all of `model`; UserError, when the model is
        initialized, naming leaves that differ.
    """
    bare, whole = _valued(model, start), _valued(around(model), start)
    wrapped = around(bare)

    def init(key, batch):
        names = set(trees.named_leaves(jax.eval_shape(model.init, key, batch)._asdict()))
        inside = jax.eval_shape(around(model).init, key, batch)
        of_model = names == set(start.shapes) and names != set(trees.named_leaves(inside._asdict()))
        return wrapped.init(key, batch) if of_model else whole.init(key, batch)

    return whole._replace(init=init)


def _valued(model: Model, start: Start) -> Model:
    """A model whose initial values are all those of a start, read when the program runs: neither constants of the
    program nor twice in memory."""

    def init(key, batch):
        shapes = jax.eval_shape(model.init, key, batch)
        check_same_leaves(f"config.init_from: {start.words}", start.shapes, shapes)

        def leaf(name, like):
            return jax.pure_callback(lambda: np.asarray(start.read(name), like.dtype), like)

        return Variables(**trees.map_named(leaf, shapes._asdict()))

    return model._replace(init=init)
