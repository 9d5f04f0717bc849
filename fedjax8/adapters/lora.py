"""LoRA: layers learn a product of two thin matrices beside their frozen kernel.

    y = x W + (alpha / r) (x A) B            A [k, r] random, B [r, d] zero: at first y = x W, bit for bit

Hu et al., arXiv 2106.09685 (there B A, with kernels transposed). W + A B is never formed while training; `merge` forms
it for export. Beside `kernel` stands a node `lora` with the leaves `a`, `b` and `scale` (alpha / r, frozen).

Variants on the model's side:
- `learn="b"`: FFA-LoRA (Sun et al., arXiv 2403.12313). A stays as drawn, the same for everyone, so that the mean of
  products is the product of means and half as much travels.
- `learn="middle"`: Fed-SB (Singhal et al., arXiv 2502.15436). y = x W + (alpha / r) (x A) R B, and only R [r, r], zero
  at first, is trained. A and B are random with columns and rows of length about 1: this project's choice, the paper
  takes them from a singular value decomposition.

A convolution's A is a convolution with r outputs and its B a 1x1 convolution. FedAvg over this model is FedIT (arXiv
2305.05644); servers that merge exactly are in `algorithms.fedlora`. `lora(qat(model))` keeps the frozen kernels on the
8-bit grid and the factors in float32; `qat(lora(model))` is refused, since there is no kernel to be trained.
"""

import contextlib
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax8 import paths, trees
from fedjax8.adapters._extended import extended
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.paths import LayerShapes
from fedjax8.types import Array, Key, Model, Product, PyTree, Variables

NODE, A, B, MIDDLE, SCALE = "lora", "a", "b", "middle", "scale"
LEARN = {"both": (A, B), "b": (B,), "middle": (MIDDLE,)}
"""Trained leaves, by variant."""
STARTS = ("kaiming", "gaussian")


def is_factor(name: str) -> bool:
    """Whether a path name is that of a leaf of LoRA."""
    return name.split("/")[-2:-1] == [NODE]


def _why_not(layer: LayerShapes) -> str | None:
    """Reason why a layer cannot have factors, or None if it can."""
    x, kernel, y = layer
    if not x:
        return "its kernel is used many times by a recurrence"
    if len(y) != len(x) or y[-1] != kernel[-1] or len(kernel) == 1:
        return f"its kernel of shape {kernel} is no matrix and no convolution"
    if len(kernel) > 2 and x[-1] != kernel[-2]:
        return "its convolution is grouped"
    return None


def target_layers(layers: dict[str, LayerShapes], targets: Sequence[str], trained: set[str]) -> dict[str, LayerShapes]:
    """The layers that get factors: those that match and can have them, without those whose kernel is trained anyway.

    Raises UserError if a pattern matches no layer, or none that is left.
    """
    chosen: dict[str, LayerShapes] = {}
    for pattern in targets:
        refused = {}
        for path in paths.matching([pattern], list(layers), "lora"):
            refused[path] = _why_not(layers[path]) or ("it is trained in full" if path in trained else None)
        fit = {path: layers[path] for path, reason in refused.items() if reason is None}
        if not fit:
            path, reason = next(iter(refused.items()))
            raise UserError(f"lora: no layer that {pattern!r} matches can have factors; {path!r} cannot, {reason}")
        chosen |= fit
    return {path: layer for path, layer in layers.items() if path in chosen}


def _start(key: Key, shape: tuple[int, ...], fan_in: int, start: str) -> Array:
    """A at first."""
    if start == "kaiming":
        bound = 1.0 / math.sqrt(fan_in)  # Kaiming's uniform with a = sqrt(5), as in the public code of LoRA
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    return jax.random.normal(key, shape) / shape[-1]


@checked
def lora(
    model: Model,
    rank: int = 8,
    alpha: float = 16.0,
    *,
    targets: Sequence[str] | str = "*",
    train: Sequence[str] | str = "head",
    learn: str = "both",
    start: str = "kaiming",
    train_mode: bool = False,
) -> Model:
    """`model` of which low-rank changes of some kernels are trained, and a few leaves in full.

    Args:
      model: any model whose dense and convolution layers ask `multiply`.
      rank: r.
      alpha: the change is multiplied by alpha / r.
      targets: shell-style patterns on layer paths, such as `*/qkv`. Layers that are trained in full, grouped
        convolutions and kernels of recurrences are left out.
      train: leaves of the model itself that are trained in full, as in `subset`; `()` for none.
      learn: `both` factors, `b` (FFA-LoRA) or `middle` (Fed-SB).
      start: A at first: `kaiming`, uniform within 1 / sqrt(k), or `gaussian` of deviation 1 / r. Not for `middle`.
      train_mode: see `subset`.

    Raises:
      UserError: when the model is initialized, if a pattern matches nothing (names the nearest path) or nothing that
        can have factors.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    for name, given, allowed in (("learn", learn, LEARN), ("start", start, STARTS)):
        if given not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {given!r}")
    targets, train = paths.as_patterns(targets), paths.as_patterns(train)

    def trained_in_full(layers: dict[str, LayerShapes]) -> set[str]:
        patterns = ["*" if wanted == "full" else wanted for wanted in train if wanted not in ("head", "bias")]
        kernels = {path: f"{path}/kernel" if path else "kernel" for path in layers}
        full = {path for path, name in kernels.items() if paths.matches(name, patterns)}
        return full | (set(list(layers)[-1:]) if {"head", "bias"} & set(train) else set())

    def factors(key: Key, layer: LayerShapes) -> dict[str, Array]:
        *front, d = layer.kernel
        fan_in = math.prod(front)
        a_key, b_key = jax.random.split(key)
        leaves = {SCALE: jnp.float32(alpha / rank)}
        if learn == "middle":
            leaves[A] = jax.random.normal(a_key, (*front, rank)) / math.sqrt(fan_in)
            leaves[B] = jax.random.normal(b_key, (rank, d)) / math.sqrt(d)
            leaves[MIDDLE] = jnp.zeros((rank, rank))
        else:
            leaves[A] = _start(a_key, (*front, rank), fan_in, start)
            leaves[B] = jnp.zeros((rank, d))
        return leaves

    def added(key, variables, batch):
        layers, params = paths.layers_of(model, variables, batch), paths.whole(variables).params
        found = target_layers(layers, targets, trained_in_full(layers))
        leaves = []
        for i, (path, layer) in enumerate(found.items()):
            if len(layer.kernel) > 2 and any(map(trees.is_clip, paths.node_at(params, path))):
                raise UserError(f"lora: {path!r} is a quantized convolution; name dense layers, or leave its clips out")
            made = factors(jax.random.fold_in(key, 1 + i), layer)
            leaves += [((*paths.keys_of(params, path), NODE, name), leaf) for name, leaf in made.items()]
        return paths.nested(leaves)

    def around(params, key, train_now, multiply):
        def with_change(path: str, product: Product, x: Array, kernel: Array) -> Array:
            y = product.forward(x, kernel) if multiply is None else multiply(path, product, x, kernel)
            node = paths.node_at(params, path)
            return y + low_rank(node[NODE], product, x) if NODE in node else y

        return contextlib.nullcontext(), with_change

    def is_trained(name: str) -> bool:
        return name.rpartition("/")[2] in LEARN[learn]

    return extended(model, added, is_factor, around, train, is_trained, train_mode=train_mode, what="lora")


def low_rank(leaves: dict[str, Array], product: Product, x: Array) -> Array:
    """(alpha / r) (x A) B of one layer, or (alpha / r) (x A) R B."""
    a, b = leaves[A], leaves[B]
    thin = x @ a if a.ndim == 2 else product.forward(x, a)
    if MIDDLE in leaves:
        thin = thin @ leaves[MIDDLE]
    return leaves[SCALE] * (thin @ b)


def full_change(leaves: dict[str, Array]) -> Array:
    """The change that the factors of one layer stand for, of its kernel's shape."""
    a, b = leaves[A], leaves[B]
    if MIDDLE in leaves:
        a = a @ leaves[MIDDLE]
    return leaves[SCALE] * (a @ b)


def merge(variables: Variables) -> Variables:
    """Variables of the model without LoRA that computes the same: each kernel with its change added, for export."""
    params, state, _ = paths.whole(variables)

    def merged(tree: PyTree) -> PyTree:
        if not isinstance(tree, dict):
            return tree
        rest = {name: merged(value) for name, value in tree.items() if name != NODE}
        return rest | {"kernel": rest["kernel"] + full_change(tree[NODE])} if NODE in tree else rest

    return Variables(merged(params), state)


# For servers that merge factors (`algorithms.fedlora`).


def pairs_of(params: PyTree) -> dict[str, dict[str, Array]]:
    """The trained leaves of each factor pair, by layer path."""
    pairs: dict[str, dict[str, Array]] = {}
    for name, leaf in trees.named_leaves(params).items():
        if is_factor(name):
            path, _, own = name.rpartition("/")
            pairs.setdefault(path.removesuffix(NODE).rstrip("/"), {})[own] = leaf
    return pairs


def replace_factors(params: PyTree, pairs: dict[str, dict[str, Array]]) -> PyTree:
    """`params` with these trained leaves of factor pairs, by layer path."""
    new = {"/".join(filter(None, (path, NODE, n))): leaf for path, pair in pairs.items() for n, leaf in pair.items()}
    return trees.map_named(lambda name, leaf: new.get(name, leaf), params)


def take_out(params: PyTree, factor: str) -> tuple[PyTree, PyTree]:
    """`params` without that leaf (`a`, `b`) of every factor pair, and a tree of those leaves alone."""
    kept = {name for name in trees.named_leaves(params) if not (is_factor(name) and name.endswith(f"/{factor}"))}
    return paths.divide(params, kept)


def put_back(params: PyTree, taken: PyTree) -> PyTree:
    """The tree that `take_out` divided; `frozen` in the place of `params` makes them frozen."""
    return paths.join(params, taken)


def add_to_kernels(frozen: PyTree, products: dict[str, Array]) -> PyTree:
    """Frozen parameters whose kernels are increased by alpha / r times these products, by layer path."""
    leaves = trees.named_leaves(frozen)
    new = {}
    for path, product in products.items():
        inside = f"{path}/" if path else ""
        kernel, scale = leaves[f"{inside}kernel"], leaves[f"{inside}{NODE}/{SCALE}"]
        new[f"{inside}kernel"] = kernel + scale * product.reshape(kernel.shape)
    return trees.map_named(lambda name, leaf: new.get(name, leaf), frozen)


EXAMPLES = ({"rank": 2}, {"rank": 2, "learn": "b"}, {"rank": 3, "learn": "middle", "train": ()})
