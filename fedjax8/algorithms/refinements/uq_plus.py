"""UQ+: the server chooses each tensor's clip (and, if asked, moves its weights) so that the next message errs least.

With v the averaged tensor, p_k and v_k the clients' weights and decoded tensors, minimize over (w, alpha)

    L(w, alpha) = sum_k p_k E || Q(w; alpha) - v_k ||^2 = E || Q(w; alpha) - v ||^2 + sum_k p_k || v_k - v ||^2.

The last term depends on neither, so the average is all that is needed of the messages. For the stochastic Q,

    E || Q(w; alpha) - v ||^2 = sum_i (clip(w_i) - v_i)^2 + (|w_i| - lo_i)(hi_i - |w_i|)

with lo and hi the grid values around the clipped |w_i|. In (lo, hi) this is linear in w_i with slope lo + hi - 2 v_i
(for positive v), smallest at the grid value nearest to v_i: no sampling and no straight-through gradient is needed.

The clip is searched over equally spaced points between the smallest and the largest clip of the round's clients. From
w = v and the averaged clip, each alternation takes `grad_steps` steps on w, then searches the clip; the best of all
pairs seen is kept, so L never rises. Nothing more is sent: clips travel in every FP8 message anyway.

That Wang et al. (arXiv 2407.02610) optimize on the server is known from second hand; this objective, the search
between the clients' clips, 50 points and 5 steps are inferred, and not confirmed to be the paper's. Keeping w = v
(`grad_steps=0`, the default) is this project's choice: the message stays unbiased as long as nothing is clipped, while
steps trade its variance for bias and end in rounding to nearest.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8 import trees
from fedjax8.algorithms.refinements.base import Refinement
from fedjax8.errors import UserError
from fedjax8.numerics import formats, scales
from fedjax8.numerics.format_rules import format_rules
from fedjax8.types import Array, Key, PyTree, Ratio

OBJECTIVES = ("expected", "det", "rand")


def objective_function(objective: str, fmt: formats.Format) -> Callable[[Key, Array, Array, Array], Array]:
    """`(key, w, alpha, v) -> float32`: the squared error of sending w with this clip where v is meant.

    `expected` is the mean over stochastic roundings, `rand` one draw of it (the same for every alpha), `det` that of
    rounding to nearest.
    """

    def expected(key, w, alpha, v):
        low, high = scales.cell(w, alpha, fmt)
        clipped = jnp.clip(w, -alpha, alpha)
        variance = (jnp.abs(clipped) - low) * (high - jnp.abs(clipped))
        return jnp.sum(jnp.square(clipped - v) + jnp.maximum(variance, 0.0))  # rounding can leave -1e-16

    def det(key, w, alpha, v):
        return jnp.sum(jnp.square(scales.quantize(w, alpha, fmt) - v))

    def rand(key, w, alpha, v):
        return jnp.sum(jnp.square(scales.decode(scales.encode(w, alpha, fmt, key), alpha, fmt) - v))

    return {"expected": expected, "det": det, "rand": rand}[objective]


def toward_nearest(w: Array, alpha: Array, v: Array, fmt: formats.Format, step_size: float) -> Array:
    """One gradient step of the expected objective on w, never past the grid value nearest to v."""
    low, high = scales.cell(v, alpha, fmt)
    slope = jnp.sign(v) * (low + high) - 2.0 * v
    nearest = scales.quantize(v, alpha, fmt)
    return jnp.clip(w - step_size * slope, jnp.minimum(v, nearest), jnp.maximum(v, nearest))


def uq_plus(
    objective: str = "expected",
    points: int = 50,
    *,
    grad_steps: int = 0,
    step_size: float = 0.25,
    alternations: int = 1,
    format: str | None = None,
    rules: Mapping[str, str] | None = None,
) -> Refinement:
    """The server step of FP8FedAvg-UQ+.

    Args:
      objective: `expected`, `det` or `rand`, see `objective_function`.
      points: clips tried per tensor, from the clients' smallest to their largest (1: the smallest alone).
      grad_steps: steps on the weights before each search of the clip.
      step_size: of those steps, above 0.
      alternations: how often steps and search are repeated.
      format: the grid of the downlink codec; None: that of the run (`config.format`), `e4m3fn` outside of one.
      rules: likewise its rules, see `qat`; a layer in float32 stays as it is.

    Reports `refine_error_before` and `refine_error_after`: L less its constant, over ||v||^2, of all quantized tensors.
    A tensor without a clip beside it stays as it is; a model without clips is a UserError when the run is set up.
    """
    by_layer = format_rules(format, rules)
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {objective!r}")
    if points < 1 or grad_steps < 0 or alternations < 1 or not step_size > 0:
        raise ValueError(
            "need points >= 1, grad_steps >= 0, alternations >= 1 and step_size > 0; got "
            f"{points}, {grad_steps}, {alternations}, {step_size}"
        )
    if alternations > 1 and not grad_steps:
        raise ValueError(f"alternations={alternations} repeats one search unless grad_steps moves the weights between")

    def refine_tensor(fmt: formats.Format, key: Key, v: Array, alpha: Array, lowest: Array, highest: Array):
        """(w, alpha, L before, L after) of one tensor."""
        loss = objective_function(objective, fmt)
        tried = lowest + (highest - lowest) * np.linspace(0.0, 1.0, points, dtype=np.float32)
        tried = jnp.where(jnp.isfinite(tried), jnp.clip(tried, lowest, highest), alpha)
        before = loss(key, v, alpha, v)
        w, best = v, (v, alpha, before)
        for _ in range(alternations):
            for _ in range(grad_steps):
                w = toward_nearest(w, alpha, v, fmt, step_size)
            losses = jax.lax.map(lambda a, w=w: loss(key, w, a, v), tried)
            alpha, least = tried[jnp.argmin(losses)], jnp.min(losses)
            best = trees.select(least < best[2], (w, alpha, least), best)
        return *best[:2], before, best[2]

    def layer(name: str) -> str:
        return name.rpartition("/")[0]

    def step(key: Key, params: PyTree, lowest: dict[str, Array], highest: dict[str, Array]):
        by_layer.record("refinement uq_plus", [layer(name) for name in trees.named_leaves(params)])
        leaves = trees.named_leaves(params)
        new, sums = dict(leaves), np.zeros(3, np.float32)
        for index, (name, clip) in enumerate(trees.clips_of(leaves).items()):
            v, fmt = leaves[name], by_layer.of(layer(name))
            if fmt is None:
                continue
            bounds = lowest[clip], highest[clip]
            new[name], new[clip], before, after = refine_tensor(
                fmt, jax.random.fold_in(key, index), v, leaves[clip], *bounds
            )
            sums = sums + jnp.stack([before, after, jnp.sum(jnp.square(v))])
        report = {"refine_error_before": Ratio(sums[0], sums[2]), "refine_error_after": Ratio(sums[1], sums[2])}
        return trees.map_named(lambda name, _: new[name], params), report

    def watch(params: PyTree) -> dict[str, Array]:
        leaves = trees.named_leaves(params)
        if not trees.clips_of(leaves):
            raise UserError("uq_plus chooses learned clips, but the model has none: use adapter qat")
        return {clip: leaves[clip] for clip in trees.clips_of(leaves).values()}

    return Refinement(watch, step)


EXAMPLES = (
    {"points": 5},
    {"objective": "det", "points": 3},
    {"objective": "rand", "points": 3},
    {"points": 3, "grad_steps": 2, "alternations": 2},
)
