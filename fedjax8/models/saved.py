"""Whole models in safetensors files: parameters, state beside them, frozen parameters.

    params/Dense_0/kernel, state/BatchNorm_0/mean, frozen/...     every leaf of `Variables` under its path

Metadata: `format` is `fedjax8.model`; what else the writer tells, such as `round`. `load_params` and the adapter
`pretrained` read the parameters of such a file too. A run leaves one as `model.safetensors`.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from fedjax8 import trees
from fedjax8.errors import UserError
from fedjax8.models.pretrained import FORMAT_OF_MODELS, header_of, values_of, write_tree
from fedjax8.types import Variables

FILE = "model.safetensors"
SHOWN = 4
"""Names in a message."""


def save_model(path: Path | str, variables: Variables, about: Mapping[str, str] | None = None) -> None:
    """Writes a model, whole or not at all; UserError where that cannot be. `about` is written beside it."""
    tree = jax.device_get(variables._asdict())
    write_tree(Path(path).expanduser(), tree, {"format": FORMAT_OF_MODELS} | dict(about or {}))


def load_model(path: Path | str, like: Variables) -> Variables:
    """The model in a file of `save_model`, NumPy arrays.

    `like` is a model of the same shapes, arrays or `jax.ShapeDtypeStruct`s. UserError for a file that is damaged or of
    another model.
    """
    read = model_readers(Path(path).expanduser())
    check_same_leaves(str(path), {name: shape for name, (shape, _) in read.items()}, like)
    return Variables(**trees.map_named(lambda name, _: read[name][1](), like._asdict()))


def model_readers(path: Path) -> dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]:
    """Path of each leaf to its shape and its reader (float32); UserError for a file that is damaged. Files of
    `save_params` have parameters alone."""
    header = header_of(path)
    prefix = "" if header.metadata.get("format") == FORMAT_OF_MODELS else "params/"
    return {
        prefix + name: (tensor.shape, functools.partial(values_of, path, tensor))
        for name, tensor in header.tensors.items()
    }


def check_same_leaves(where: str, found: Mapping[str, tuple[int, ...]], like: Variables) -> None:
    """Raises UserError, naming them, unless leaves of these names and shapes are those of a model."""
    wanted = {name: tuple(leaf.shape) for name, leaf in trees.named_leaves(like._asdict()).items()}
    lacking = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    other = [
        f"{name} {found[name]}, needed {wanted[name]}"
        for name in wanted
        if found.get(name, wanted[name]) != wanted[name]
    ]
    parts = (("it lacks", lacking), ("it has no place for", extra), ("of another shape", other))
    said = [f"{words} {_listed(names)}" for words, names in parts if names]
    if said:
        raise UserError(f"{where} is of another model: {'; '.join(said)}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
