"""Parameters from and to safetensors files: published checkpoints, and our own.

    params = load_pretrained("vit_base.safetensors", like, names="timm_vit", head="new")
    save_params("mine.safetensors", params);    params = load_params("mine.safetensors")

A file is memory-mapped and read tensor by tensor, so that beside the parameters there is never more than one tensor of
it in memory, and of a fused tensor only the third that is wanted. Everything is checked first, from the file's header:
every leaf has its tensor and every tensor a leaf, shapes and dtypes fit; that values are finite as they are read. Which
tensor a leaf comes from: `_checkpoint_names.py`. The format: `_safetensors.py`; its library is not needed.
"""

import functools
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8 import trees
from fedjax8.errors import UserError
from fedjax8.lookup import suggest
from fedjax8.models._checkpoint_names import KINDS, Names, Source, names_of
from fedjax8.models._safetensors import Header, Tensor, read_header, read_tensor, write_tensors
from fedjax8.types import PyTree

NAMES = ("fedjax8", *KINDS)
HEADS = ("keep", "new")
POSITIONS = ("same", "resize")
DTYPES = ("F32", "F16", "BF16")
"""Of tensors that are read; all become float32."""
MOST_FOLDERS = 32
"""Modules within modules, in the path of a parameter."""
FORMAT_OF_MODELS = "fedjax8.model"
"""In the metadata of files of whole models (`saved.py`), whose parameters lie below `params/`."""
SHOWN = 3
"""Names in a message."""


def check_settings(names: str, head: str, positions: str) -> None:
    """Raises ValueError for a setting of `load_pretrained` that is not allowed."""
    given = {"names": (names, NAMES), "head": (head, HEADS), "positions": (positions, POSITIONS)}
    for setting, (value, allowed) in given.items():
        if value not in allowed:
            raise ValueError(f"{setting} is {value!r}; allowed are {', '.join(allowed)}{suggest(value, allowed)}")


def find_file(path: str | os.PathLike) -> Path:
    """The safetensors file at `path`: itself, or `model.safetensors` in it if it is a folder, as the hub's are."""
    file = Path(path).expanduser()
    file = file / "model.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"no file {str(file)!r}; give a safetensors file, or a folder with model.safetensors")
    return file


def load_pretrained(
    path: str | os.PathLike,
    like_params: PyTree,
    names: str = "fedjax8",
    *,
    head: str = "keep",
    positions: str = "same",
) -> PyTree:
    """`like_params` with every leaf replaced by the file's, as float32 arrays on the default device.

    Args:
      path: a safetensors file, or a folder with `model.safetensors`.
      like_params: params of the model, or `jax.ShapeDtypeStruct`s in their place.
      names: the library of the file: `fedjax8` for one of `save_params`, `timm_vit`, `hf_vit`, `bert`, `roberta` or
        `gpt2`.
      head: `keep` for the file's, `new` for the one in `like_params`, whatever the file has. For RoBERTa the pooler
        belongs to it. A tied one (`gpt`) is always the file's.
      positions: `same` refuses position embeddings of another number. `resize` brings those of another image size to
        ours, bicubic with antialiasing as timm does (Keys' kernel, a = -1/2), and takes the first of those of a text.

    Raises:
      ValueError: a setting that is not allowed, or `head="new"` with shapes only.
      UserError: no such file, a file of another kind or without a needed tensor, tensors that have no place in the
        model, another shape, or a dtype other than float32, float16 and bfloat16.
    """
    read = readers(path, like_params, names, head=head, positions=positions)

    def leaf(name, like):
        if name in read:
            return jnp.asarray(read[name]())
        if isinstance(like, jax.ShapeDtypeStruct):
            raise ValueError(f"head='new' keeps {name} of like_params, but that has no values there, only shapes")
        return like

    return trees.map_named(leaf, like_params)


def readers(
    path: str | os.PathLike, like_params: PyTree, names: str, *, head: str, positions: str
) -> dict[str, Callable[[], np.ndarray]]:
    """Path of each leaf that is loaded to its reader: float32, of its shape. Arguments, errors: `load_pretrained`.

    Only the header is read here, so that all errors come before any values.
    """
    check_settings(names, head, positions)
    file = find_file(path)
    leaves = trees.named_leaves(like_params)
    known, stored = names_of(names, leaves), header_of(file).tensors
    by_name = {_canonical(name, known.prefix): tensor for name, tensor in stored.items()}
    heads = known.head if head == "new" else ()
    wanted = {name: leaf for name, leaf in leaves.items() if not name.startswith(heads)}
    if heads and len(wanted) == len(leaves):
        raise UserError(f"head='new' leaves out the leaves below {' and '.join(heads)}; the model has no such leaf")
    _check_places(file, names, list(wanted), known, by_name, head)
    found: dict[str, Callable[[], np.ndarray]] = {}
    for name, leaf in wanted.items():
        source = known.sources[name]
        tensor = by_name[source.tensor]
        _check(file, name, tuple(leaf.shape), source, tensor, positions, head)
        found[name] = functools.partial(_read, file, tensor, source, tuple(leaf.shape))
    return found


def check_saving(path: str | os.PathLike) -> None:
    """Raises UserError where `save_params` could not write `path`, before anything is trained. Makes its folder."""
    path = Path(path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder of {str(path)!r}: {error}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {str(path)!r}: {'a folder' if path.is_dir() else 'its folder is not writable'}")


def save_params(path: str | os.PathLike, params: PyTree) -> None:
    """Writes the leaves under their paths (`block_0/attention/query/kernel`), in their dtypes; whole or not at all."""
    write_tree(Path(path).expanduser(), params, {"format": "fedjax8"})


def write_tree(path: Path, tree: PyTree, metadata: Mapping[str, str]) -> None:
    """Writes the leaves of a tree under their paths, whole or not at all; UserError where that cannot be."""
    tensors = {name: np.asarray(leaf) for name, leaf in trees.named_leaves(tree).items()}
    try:
        write_tensors(path, tensors, metadata)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; make room there, or see to its permissions") from error


def load_params(path: str | os.PathLike) -> dict:
    """The nested dict of float32 arrays that a file of `save_params` holds, or the parameters of a whole model's."""
    file = find_file(path)
    params: dict[str, Any] = {}
    header = header_of(file)
    tensors = header.tensors
    if header.metadata.get("format") == FORMAT_OF_MODELS:
        tensors = {n.removeprefix("params/"): tensor for n, tensor in tensors.items() if n.startswith("params/")}
    for name, tensor in tensors.items():
        *folders, last = name.split("/")
        node = params
        if len(folders) > MOST_FOLDERS or not all((*folders, last)):
            raise UserError(f"{file}: {name[:100]!r} is no path of a parameter; files of others need load_pretrained")
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise UserError(f"{file}: {name!r} lies below another parameter; the file is not one of save_params")
        _check_dtype(file, tensor)
        if last in node:
            raise UserError(f"{file}: other parameters lie below {name!r}; the file is not one of save_params")
        node[last] = jnp.asarray(_read(file, tensor, Source(tensor.name), tensor.shape))
    return params


# Files.


def header_of(file: Path) -> Header:
    """The header of a file; UserError for one that is damaged or of another kind."""
    try:
        return read_header(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} is no complete safetensors file ({error}); files of PyTorch (.bin, .pt, .pth) are not read, save "
            "their tensors with safetensors first"
        ) from error


def values_of(file: Path, tensor: Tensor, places: tuple[slice, ...] = ()) -> np.ndarray:
    """The float32 values at `places` of a tensor; UserError where they cannot be read, or are not finite."""
    try:
        x = read_tensor(file, tensor, places).astype(np.float32, copy=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {tensor.name!r} {tensor.shape} cannot be read ({error})") from error
    if not np.isfinite(np.sum(x, dtype=np.float64)):  # float64 cannot overflow here
        raise UserError(f"{file}: {tensor.name!r} holds NaN or an infinity; save the parameters of a model that works")
    return x


def _canonical(name: str, prefix: str) -> str:
    """The name without variants of some files: the prefix of a class, the old names of a norm's parameters."""
    name = re.sub(r"(LayerNorm)\.gamma$", r"\1.weight", re.sub(r"(LayerNorm)\.beta$", r"\1.bias", name))
    return name.removeprefix(prefix)


def _read(file: Path, tensor: Tensor, source: Source, shape: tuple[int, ...]) -> np.ndarray:
    """The leaf: what is wanted of the tensor, in our layout."""
    places = [slice(None)] * len(tensor.shape)
    if source.part is not None:
        axis = _fused_axis(source)
        size = tensor.shape[axis] // 3
        places[axis] = slice(source.part * size, (source.part + 1) * size)
    x = values_of(file, tensor, tuple(places))
    if source.layout == "patches":
        x = x.transpose(2, 3, 1, 0)
    elif source.layout == "transposed":
        x = x.T
    elif source.layout == "image_positions":
        x = resize_positions(x[0], shape[0])
    elif source.layout == "text_positions":
        x = x[source.skip : source.skip + shape[0]]
    return np.ascontiguousarray(x).reshape(shape)


def resize_positions(x: np.ndarray, tokens: int) -> np.ndarray:
    """Positions `[1 + side * side, D]` of a class token and a square grid, for another grid: `[tokens, D]`, bicubic."""
    if len(x) == tokens:
        return x
    before, after = math.isqrt(len(x) - 1), math.isqrt(tokens - 1)
    weights = _bicubic(before, after)
    grid = np.einsum("ih,jw,hwd->ijd", weights, weights, x[1:].reshape(before, before, -1), optimize=True)
    return np.concatenate([x[:1], grid.reshape(tokens - 1, -1)]).astype(np.float32)


def _bicubic(before: int, after: int) -> np.ndarray:
    """`[after, before]`: what each place of the new line takes of each place of the old one; rows sum to 1."""
    ratio = before / after
    at = (np.arange(after) + 0.5) * ratio - 0.5
    t = np.abs(at[:, None] - np.arange(before)) / max(ratio, 1.0)
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


# Checks, from the header alone.


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def _check_places(
    file: Path, kind: str, wanted: list[str], known: Names, by_name: Mapping[str, Tensor], head: str
) -> None:
    """Raises UserError unless each leaf has its tensor and each tensor its leaf."""
    strangers = [name for name in wanted if name not in known.sources]
    if strangers:
        raise UserError(f"names={kind!r} has nothing for {_listed(strangers)}; names may be {', '.join(NAMES)}")
    missing = [name for name in wanted if known.sources[name].tensor not in by_name]
    if missing:
        if known.head and all(name.startswith(known.head) for name in missing):
            hint = "use head='new'"
        else:
            hint = f"it has {_listed(sorted(by_name))}, and is read with names={kind!r}"
        lacking = list(dict.fromkeys(known.sources[name].tensor for name in missing))
        raise UserError(f"{file} has no tensor {_listed(lacking)}: {hint}")
    needed = {known.sources[name].tensor for name in wanted}
    ignored = known.ignored
    if head == "new":
        needed |= {source.tensor for name, source in known.sources.items() if name.startswith(known.head)}
        ignored = f"{ignored}|{known.ignored_head}"
    extra = [tensor.name for name, tensor in by_name.items() if name not in needed and not re.fullmatch(ignored, name)]
    if extra:
        raise UserError(f"{file} has tensors with no place in the model: {_listed(sorted(extra))}; is it another size?")


def _fused_axis(source: Source) -> int:
    return 0 if source.layout == "transposed" else -1


def _expected(source: Source, shape: tuple[int, ...]) -> tuple[int | None, ...]:
    """The tensor's shape for a leaf of this shape; None for any length."""
    if source.layout == "patches":
        return (shape[1], None, None, None)
    theirs = list(shape[::-1] if source.layout == "transposed" else shape)
    if source.part is not None:
        theirs[_fused_axis(source)] *= 3
    if source.layout == "text_positions":
        theirs[0] += source.skip
    return (1, *theirs) if source.layout in ("leading", "image_positions") else tuple(theirs)


def _check_dtype(file: Path, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise UserError(f"{file}: {tensor.name!r} is {tensor.dtype}; allowed are {', '.join(DTYPES)}")


def _check(
    file: Path, name: str, shape: tuple[int, ...], source: Source, tensor: Tensor, positions: str, head: str
) -> None:
    """Raises UserError unless the tensor can become the leaf."""
    _check_dtype(file, tensor)
    given, expected = tensor.shape, _expected(source, shape)
    fits = len(given) == len(expected) and all(b in (a, None) for a, b in zip(given, expected, strict=True))
    hint = ""
    if source.layout == "patches":
        fits = fits and math.prod(given) == math.prod(shape) and given[2] == given[3]
        hint = f" with {shape[0]} numbers in a patch; set patch_size, or the images' channels differ"
    elif source.layout == "image_positions" and not fits and len(given) == 3 and given[::2] == expected[::2]:
        square = all(math.isqrt(n - 1) ** 2 == n - 1 for n in (given[1], shape[0]))
        fits = positions == "resize" and square
        hint = ": another image size or patch size; positions='resize' interpolates" if square else ""
    elif source.layout == "text_positions" and not fits and len(given) == 2 and given[1] == expected[1]:
        longer = expected[0] is not None and given[0] > expected[0]
        fits = positions == "resize" and longer
        hint = f": set max_length={given[0] - source.skip}" + (" or positions='resize'" * longer)
    elif name.startswith("head/") and head == "keep":
        hint = ": another number of classes; use head='new'"
    if not fits:
        shown = str(expected).replace("None", "any")
        raise UserError(f"{file}: {tensor.name!r} is {given}, but {name} {shape} needs {shown}{hint}")
