"""FP8 messages: one byte per weight on a grid scaled to the tensor's clip, unbiased by stochastic rounding.

    code = round_to_grid(x * max / alpha),   x^ = code * alpha / max,   E[x^] = clip(x, -alpha, alpha)

This is the message of FP8FedAvg-UQ, after Wang et al. (arXiv 2407.02610: clients and messages in 8-bit floating point).
Unbiased rounding of messages is known from second hand, the formula is inferred; the grid with a clip per
tensor is that of Kuzmin et al. (arXiv 2208.09225). Which tensors are quantized, and that clips travel as float32, is
this project's choice.

Message layout, in tree order: a quantized leaf becomes its codes (native 8-bit floats, 1 byte each) and, unless a clip
already stands beside it in the tree, the float32 clip; every other leaf stays float32, also where a rule says so. A
learned clip is sent once, as the leaf that it is.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8 import trees
from fedjax8.numerics import scales
from fedjax8.numerics.format_rules import format_rules, layers_of
from fedjax8.numerics.formats import Format
from fedjax8.types import Array, Codec, PyTree, Ratio

ROUNDINGS = ("stochastic", "nearest")
CLIPS = ("learned", "raised", "max")
BEYOND = np.float32(1 + 2.0**-18)
"""A value counts as clipped beyond this many alphas. Within it, where an average of values that are alpha may lie by
float32 rounding, stochastic rounding takes it for alpha itself (see `numerics.rounding`)."""


class Quantized(NamedTuple):
    """A quantized leaf on the wire."""

    codes: Array
    """8-bit floats, the leaf's shape."""
    clip: Array | None
    """float32 scalar alpha, or None where the tree itself holds the learned clip of this leaf."""


def fp8(
    format: str | None = None,
    rounding: str = "stochastic",
    *,
    clip: str = "learned",
    min_ndim: int = 2,
    rules: Mapping[str, str] | None = None,
) -> Codec:
    """Codec that sends weights in 8 bits.

    Args:
      format: `e4m3fn`, `e4m3fnuz` (with a clip, the grid of Kuzmin et al.) or `e5m2`; None: that of the run
        (`config.format`), `e4m3fn` outside of one.
      rounding: `stochastic` (unbiased up to clipping) or `nearest` (the biased ablation).
      clip: `learned` takes the clip beside a parameter (a leaf `kernel_clip` under `params`, as the `qat` adapter makes
        them) and falls back to the largest magnitude in top-level entries that hold no clips; `raised` does the same,
        but first raises a learned clip to the largest magnitude of its tensor and sends the raised one (the `alpha_up`
        option: nothing is clipped, no byte is added); `max` always takes the largest magnitude and sends it beside the
        codes.
      min_ndim: in a top-level entry without learned clips, leaves of at least this many dimensions are quantized.
      rules: as of `qat`: a pattern on layer paths to the format of the leaves in a layer, or to `float32`, which sends
        them as they are; first match wins. None: those of the run (`config.format_rules`), none outside of one.

    Raises:
      UserError: when the run is set up, if a pattern matches no layer that the run has.

    Guarantees: fixed size; with stochastic rounding the mean over keys is the clipped value; values on the grid do not
    move.
    Measures `clipped_fraction` and `quantization_error`.
    """
    by_layer = format_rules(format, rules)
    for name, given, allowed in (("rounding", rounding, ROUNDINGS), ("clip", clip, CLIPS)):
        if given not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {given!r}")

    def formats_of(names: Iterable[str]) -> dict[str, Format | None]:
        """Of each leaf; None for float32."""
        if not rules:
            return dict.fromkeys(names, by_layer.rest)
        return {name: by_layer.of(layer) for name, layer in layers_of(names).items()}

    def prepare(tree: PyTree) -> tuple[PyTree, dict[str, Array], dict[str, Array]]:
        """The tree with the clips that are sent, the clip of every leaf to quantize, and those that are leaves of the
        tree. In trees of updates clips are differences, not scales."""
        leaves = trees.named_leaves(tree)
        format_of = formats_of(leaves)
        pairs = {} if clip == "max" else {n: c for n, c in trees.clips_of(leaves).items() if "params" in n.split("/")}
        with_clips = {name.split("/")[0] for name in pairs}
        # Of a single value, code and clip together would be larger than it is.
        single = {n for n, x in leaves.items() if x.size < 2}
        large = [n for n, x in leaves.items() if trees.is_float32(x) and x.ndim >= min_ndim and not trees.is_clip(n)]
        whole = [n for n in large if n.split("/")[0] not in with_clips and n not in single]
        alphas = {n: scales.max_abs(leaves[n]) for n in whole if format_of[n]}
        learned = {n: leaves[c] for n, c in pairs.items() if format_of[n]}
        if clip == "raised":
            learned = {n: jnp.maximum(alpha, scales.max_abs(leaves[n])) for n, alpha in learned.items()}
            sent = {pairs[n]: alpha for n, alpha in learned.items()}
            tree = trees.map_named(lambda name, x: sent.get(name, x), tree)
        return tree, alphas | learned, learned

    def encode(key, state, tree):
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(trees.named_leaves(tree))}
        tree, alphas, learned = prepare(tree)
        grid = formats_of(keys)
        if alphas or rules:
            by_layer.record("codec fp8", list(layers_of(keys).values()))

        def encode_leaf(name, x):
            if name not in alphas:
                return x
            codes = scales.encode(x, alphas[name], grid[name], keys[name] if rounding == "stochastic" else None)
            return Quantized(codes, None if name in learned else alphas[name])

        return trees.map_named(encode_leaf, tree), state

    def decode(state, message):
        def is_quantized(x):
            return isinstance(x, Quantized)

        leaves = trees.named_leaves(message, is_leaf=is_quantized)
        grid = formats_of(leaves)

        def decode_leaf(name, x):
            if not is_quantized(x):
                return x
            alpha = leaves[name + trees.CLIP_SUFFIX] if x.clip is None else x.clip
            return scales.decode(x.codes, alpha, grid[name])

        return trees.map_named(decode_leaf, message, is_leaf=is_quantized)

    def error_bound(tree):
        sent, alphas, _ = prepare(tree)
        raised = trees.named_leaves(sent)
        grid = formats_of(raised)

        def bound(name, x):
            if name not in alphas:
                return jnp.abs(raised[name] - x)  # zero but for a raised clip
            alpha, fmt = alphas[name], grid[name] or by_layer.rest  # a leaf with a clip has one
            smallest = scales.scale_for(alpha, fmt) * fmt.smallest_subnormal
            step = jnp.maximum(2.0**-fmt.mantissa_bits * jnp.minimum(jnp.abs(x), alpha), smallest)
            return jnp.maximum(jnp.abs(x) - alpha, 0.0) + step * (1.0 if rounding == "stochastic" else 0.5)

        return trees.map_named(bound, tree)

    def measure(tree, decoded):
        """Fractions over all quantized leaves: values beyond their clip, and squared error over squared norm."""
        _, alphas, learned = prepare(tree)
        leaves, got = trees.named_leaves(tree), trees.named_leaves(decoded)
        if not alphas:
            return {}

        def total(f, names=alphas):
            return sum((f(name) for name in names), jnp.float32(0.0))

        def clipped(name):
            return jnp.sum(jnp.abs(leaves[name]) > scales.floor_alpha(alphas[name]) * BEYOND, dtype=jnp.float32)

        # Nothing lies beyond a clip that is the largest value or was raised to it.
        may_clip = learned if clip == "learned" else {}
        count = jnp.float32(sum(leaves[n].size for n in alphas))
        error = total(lambda n: trees.squared_distance(got[n], leaves[n]))
        norm = total(lambda n: jnp.sum(jnp.square(leaves[n])))
        return {
            "clipped_fraction": Ratio(total(clipped, may_clip), count),
            "quantization_error": Ratio(error, norm),
        }

    unbiased = rounding == "stochastic"
    return Codec(lambda tree: (), encode, decode, unbiased, error_bound, measure, contracts=True)


EXAMPLES = (
    {},
    {"format": "e4m3fnuz"},
    {"format": "e5m2", "clip": "max"},
    {"rounding": "nearest"},
    {"min_ndim": 0},
    {"clip": "raised"},
)
