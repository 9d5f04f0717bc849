"""Parts of nested dicts by path, and the layers of a model.

Adapters of fine-tuning freeze by it, algorithms with personal parts split parameters by it: `Split` into a public part,
which travels, and a private one, which each client keeps.
"""

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.tree_util import DictKey

from fedjax8 import trees
from fedjax8.errors import UserError
from fedjax8.types import Batch, Model, PyTree, Variables

SHOWN = 8
"""Names that a message lists at most."""


def listed(names: Iterable[str]) -> str:
    """The first few names as text."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def as_patterns(given: Sequence[str] | str) -> tuple[str, ...]:
    """One pattern or several as a tuple; ValueError for anything else."""
    patterns = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ValueError(f"path patterns must be texts such as '*/bias'; got {given!r}")
    return patterns


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the shell-style patterns matches; `*` goes across `/`."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _nearest(pattern: str, names: Collection[str]) -> str:
    """`; did you mean ...?` for the path with a stretch near the pattern's literal text, or nothing."""
    literal = pattern.strip("*/")
    length = literal.count("/") + 1
    stretches = {}
    for name in names:
        parts = name.split("/")
        for i in range(len(parts) - length + 1):
            stretches.setdefault("/".join(parts[i : i + length]), name)
    near = difflib.get_close_matches(literal, list(stretches), n=1, cutoff=0.5)
    return f"; did you mean {stretches[near[0]]!r}?" if near else ""


def matching(patterns: Sequence[str], names: Collection[str], what: str) -> list[str]:
    """The names that any of the patterns matches, in their order.

    Raises UserError that names the nearest path if a pattern matches nothing.
    """
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            raise UserError(f"{what}: pattern {pattern!r} matches none of {listed(names)}{_nearest(pattern, names)}")
    return [name for name in names if matches(name, patterns)]


def outermost(paths: Sequence[str]) -> list[str]:
    """The paths that lie inside no other of them."""
    return [path for path in paths if not any(path.startswith(f"{other}/") for other in paths)]


def nested(leaves: Iterable[tuple[tuple, Any]]) -> dict:
    """The nested dict of `(keys, leaf)` pairs."""
    tree: dict = {}
    for keys, leaf in leaves:
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = leaf
    return tree


def divide(tree: PyTree, chosen: Collection[str]) -> tuple[dict, dict]:
    """A nested dict as two: the leaves with the chosen path names, and the others. `join` puts them together again."""
    inside, outside = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not all(isinstance(key, DictKey) for key in path):
            raise UserError(f"parameters must be nested dicts to be divided; got {trees.path_name(path)}")
        side = inside if trees.path_name(path) in chosen else outside
        side.append((tuple(key.key for key in path), leaf))
    return nested(inside), nested(outside)


def join(a: Mapping, b: Mapping) -> dict:
    """Two nested dicts that share no leaf as one; ValueError if they do share one."""
    both = [key for key in a if key in b]
    leaves = [str(key) for key in both if not (isinstance(a[key], Mapping) and isinstance(b[key], Mapping))]
    if leaves:
        raise ValueError(f"two trees hold the same leaf: {', '.join(leaves)}")
    return {**a, **b, **{key: join(a[key], b[key]) for key in both}}


class Split(NamedTuple):
    """The cut of a parameter tree into the public part, which travels, and the private part, which each client
    keeps."""

    private: tuple[str, ...] | None
    """Shell-style patterns on paths of leaves, or of the layers that they lie in; None: the model's last layer. Empty:
    everything is public, and trees stay as they are."""

    def cut(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """(public part, private part) of nested dicts, which `merge` puts together again.

        A clip goes with the kernel that it lies beside, whatever the patterns. Raises UserError if a pattern
        matches nothing, if nothing would be public or, with None, if it isn't plain which layer is the last one.
        """
        if self.private == ():
            return params, {}
        names = list(trees.named_leaves(params))
        patterns = (last_layer(names),) if self.private is None else self.private
        inside = {name: [name, *above(name)] for name in names}
        what = "private parameters"
        paths = sorted(
            {path for of_leaf in inside.values() for path in of_leaf}, key=lambda path: (path.count("/"), path)
        )
        chosen = set(matching(patterns, paths, what))
        private = {name for name in names if chosen.intersection(inside[name])}
        private = {name for name in names if _beside(name, inside) in private}
        if not private or len(private) == len(names):
            kept = "everything" if private else "nothing but clips"
            raise UserError(f"{what}: {listed(patterns)} match {kept} of {listed(names)}; a part must stay public")
        own, public = divide(params, private)
        return public, own

    def merge(self, public: PyTree, private: PyTree) -> PyTree:
        """The whole tree of the two parts of `cut`."""
        return public if self.private == () else join(public, private)


ALL_PUBLIC = Split(())
"""Everything travels."""


def split(private: Sequence[str] | str | None) -> Split:
    """The `Split` by these patterns; ValueError unless they are texts, at least one."""
    patterns = None if private is None else as_patterns(private)
    if patterns == ():
        raise ValueError("private: no pattern is given, so that nothing would be; leave it out for the last layer")
    return Split(patterns)


def last_layer(names: Collection[str]) -> str:
    """Path of the layer that gives a model's outputs, by the names of its leaves: `head`, or of flax's dense layers at
    the top, `Dense_0`, `Dense_1`, ..., the one of the highest number. UserError where there is neither."""
    top = {name.split("/")[0] for name in names if "/" in name}
    numbers = [int(found[1]) for name in top if (found := re.fullmatch(r"Dense_(\d+)", name))]
    if "head" in top:
        return "head"
    if not numbers:
        raise UserError(
            f"private parameters: it isn't plain which layer is the last of {listed(names)}; name it, such as "
            f"private=({next(iter(top), 'head')!r},)"
        )
    return f"Dense_{max(numbers)}"


def above(name: str) -> list[str]:
    """Paths of the nodes above a leaf, `a/b` and `a` for `a/b/c`."""
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]


def _beside(name: str, names: Collection[str]) -> str:
    """The kernel that a clip lies beside, if there is one, else the leaf itself."""
    kernel = f"{name.rpartition('/')[0]}/kernel".removeprefix("/")
    return kernel if trees.is_clip(name) and kernel in names else name


def whole(variables: Variables) -> Variables:
    """The variables with frozen parameters among the trained ones, as of a model that freezes none."""
    return Variables(join(variables.params, variables.frozen), variables.state)


def keys_of(params: PyTree, path: str) -> tuple:
    """The keys that lead to the layer at `path`: its parts, as numbers where the dict has numbers (nnx sequences)."""
    keys: list = []
    for part in path.split("/") if path else ():
        keys.append(part if part in params else int(part))
        params = params[keys[-1]]
    return tuple(keys)


def node_at(params: PyTree, path: str) -> dict:
    """The dict of parameters of the layer at `path`."""
    for key in keys_of(params, path):
        params = params[key]
    return params


class LayerShapes(NamedTuple):
    """A dense or convolution layer, by the shapes of its product."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    y: tuple[int, ...]


def layers_of(model: Model, variables: Variables, batch: Batch) -> dict[str, LayerShapes]:
    """Every layer that asks `multiply`, by path, in the order of their last call. Traced, not run."""
    found: dict[str, LayerShapes] = {}

    def record(path, product, x, kernel):
        y = product.forward(x, kernel)
        found.pop(path, None)
        found[path] = LayerShapes(x.shape, kernel.shape, y.shape)
        return y

    jax.eval_shape(lambda variables, batch: model.apply(variables, batch, multiply=record)[0], variables, batch)
    return found
