"""Every codec file, found by itself, on every one of its examples: what `types.Codec` promises."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.codecs import (
    adaptive,
    block_fp8,
    chain,
    codebook,
    drive,
    eden,
    fp8,
    narrow,
    randomk,
    rotated,
    sign,
    terngrad,
    topk,
    uniform,
    wire,
)
from fedjax8.codecs._contraction import Scaled
from fedjax8.errors import UserError
from fedjax8.lookup import component_names
from fedjax8.types import Sections

PACKAGE = "fedjax8.codecs"


def cases(package=PACKAGE):
    """(id, codec) of every example of every codec in the package."""
    for name in component_names(package):
        module = importlib.import_module(f"{package}.{name}")
        for index, settings in enumerate(module.EXAMPLES):
            yield f"{name}-{index}", getattr(module, name)(**settings)


CODECS = dict(cases())

# Codecs that add values up, in an order that is XLA's choice: not the same for one client as for many, or compiled
# whole as operation by operation. They multiply before, which turns a rounding into one of the products' size. And one
# that adds a product, which is rounded first or not.
SUMMING = ("drive", "eden", "rotated", "evofed", "powersgd", "adaptive")
# Sums of at most 64 products of values up to 5, and back: a few float32 roundings of that size.
OF_SUMS = 2.0**-20 * 5
# Codecs whose message holds a norm divided by a power of two up to sqrt(64), which may make it subnormal: then values
# of up to that times the smallest normal number decode to zero. And one whose products of two small numbers are.
UNDERFLOW = {"drive": 128, "eden": 128, "rotated": 128, "evofed": 128}


def tolerance(name):
    return OF_SUMS if name.split("-")[0] in SUMMING else 0.0


@pytest.fixture(params=CODECS)
def name(request):
    return request.param


@pytest.fixture
def codec(name):
    return CODECS[name]


def tree_of(kernel, bias, one):
    """Layers as the qat adapter makes them and without clips, leaves of one element and of none, and integers.

    Kernels `[7, 5]` and `[1, 1]`. All trees have the same shapes, so that a codec is compiled once for all of them.
    """
    kernel, bias = jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)
    clip = jnp.maximum(jnp.max(jnp.abs(kernel)), 1e-8)
    return {
        "params": {
            "layer": {"kernel": kernel, "bias": bias, "kernel_clip": clip},
            "plain": {"kernel": jnp.full((1, 1), one, jnp.float32)},
            "none": {"kernel": jnp.zeros((0, 3)), "bias": jnp.zeros(0), "hollow": jnp.zeros((2, 0, 3))},
        },
        "step": jnp.arange(6).reshape(2, 3),
    }


def trees_to_try():
    rng = np.random.default_rng(0)
    # Nothing lies beyond 2.5 standard deviations, where it might be clipped.
    kernel, bias = np.clip(rng.standard_normal((7, 5)), -1.8, 1.8), rng.standard_normal(3)
    signs, most = np.sign(kernel), np.finfo(np.float32).max
    sparse = np.zeros((7, 5))
    sparse[2, 3], sparse[5, 0] = 1.0, -0.02
    return {
        "normal": tree_of(kernel, bias, -0.3),
        "zero": tree_of(0 * kernel, 0 * bias, 0.0),
        "constant": tree_of(np.full((7, 5), 0.7), np.full(3, 0.7), 0.7),
        "huge": tree_of(1e30 * kernel, 1e30 * bias, -3e29),
        "tiny": tree_of(1e-30 * kernel, 1e-30 * bias, -3e-31),
        "heavy": tree_of(rng.standard_cauchy((7, 5)), rng.standard_cauchy(3), 40.0),
        "sparse": tree_of(sparse, [0, 0.5, 0], 0.0),
        "smallest": tree_of(1e-38 * kernel, 1e-38 * bias, 3e-38),
        "subnormal": tree_of(1e-40 * kernel, 1e-40 * bias, 1e-44),
        "1e37": tree_of(1e37 * kernel, 1e37 * bias, 1e37),
        "1e38": tree_of(1e38 * kernel, 1e38 * bias, -1e38),
        "largest": tree_of(signs * most, [most, -most, most], most),
        "all largest": tree_of(np.full((7, 5), -most), np.full(3, most), -most),
        "mixed": tree_of(signs * 10 ** rng.uniform(-44, 38.5, (7, 5)), [1e-38, -1, 3e38], 1e-20),
    }


TREES = trees_to_try()
NORMAL = TREES["normal"]
AVERAGED = ("normal", "heavy", "sparse", "smallest", "1e37")
"""Trees of which many messages are made."""
SMALLEST_NORMAL = 2.0**-126
"""What is smaller may be taken for zero."""


def sections_of(message):
    found = jax.tree.leaves(message, is_leaf=lambda x: isinstance(x, Sections))
    return [x for x in found if isinstance(x, Sections)]


@functools.cache
def message_shapes(name):
    codec = CODECS[name]
    return jax.eval_shape(lambda t: codec.encode(jax.random.key(0), codec.init(t), t)[0], NORMAL)


WITH_PARTS = [name for name in CODECS if sections_of(message_shapes(name))]


def exchange_with(codec):
    """`(key, tree) -> (message, what it decodes to, the stated bound or None)`."""

    def run(key, tree):
        state = codec.init(tree)
        message, _ = codec.encode(key, state, tree)
        return message, codec.decode(state, message), codec.error_bound and codec.error_bound(tree)

    return run


@functools.cache
def compiled(name):
    return jax.jit(exchange_with(CODECS[name]))


@functools.cache
def exchange(name, which, seed=0):
    """The message of one of the trees, what it decodes to, and the bound."""
    return compiled(name)(jax.random.key(seed), TREES[which])


@functools.cache
def together(name):
    run = exchange_with(CODECS[name])
    return jax.jit(jax.vmap(lambda key, tree: run(key, tree)[1]))


@functools.cache
def many(name, which="normal"):
    """(keys, trees, what these decode to), of clients with x, 2 x and -x / 2 in turn: many where there are averages."""
    codec = CODECS[name]
    clients = 3 * 1300 if codec.unbiased else 3 * 100 if codec.contracts or codec.aligned else 3
    keys, factors = jax.random.split(jax.random.key(4), clients), jnp.tile(jnp.array([1.0, 2.0, -0.5]), clients // 3)

    def scaled(path, x):
        each = jnp.abs(factors) if trees.is_clip(path) else factors
        return x * each.reshape(-1, *[1] * x.ndim) if trees.is_float32(x) else jnp.broadcast_to(x, (clients, *x.shape))

    stacked = trees.map_named(scaled, TREES[which])
    return keys, stacked, together(name)(keys, stacked)


QUICK = ("normal", "zero", "heavy", "smallest", "largest", "mixed")
"""Trees of every run of the tests; all of them are in the slow tests."""


@pytest.fixture(params=[pytest.param(tree, marks=[] if tree in QUICK else pytest.mark.slow) for tree in TREES])
def which(request):
    return request.param


def test_the_first_state_needs_the_shapes_of_a_tree_alone(codec):
    """A run makes it from what it has traced, before there is a tree."""
    shapes = jax.eval_shape(lambda: NORMAL)
    found, expected = codec.init(shapes), codec.init(NORMAL)
    assert trees.shapes(found) == trees.shapes(expected)


def test_decoding_gives_back_the_structure_shapes_and_dtypes(name, which):
    _, decoded, _ = exchange(name, which)
    tree = TREES[which]
    assert jax.tree.structure(decoded) == jax.tree.structure(tree)
    for got, sent in zip(jax.tree.leaves(decoded), jax.tree.leaves(tree), strict=True):
        assert (got.shape, got.dtype) == (sent.shape, sent.dtype)


def test_what_is_decoded_is_finite(name, which):
    """Of zero, constant, one-element and empty leaves, heavy tails, and values from subnormal to the largest alike."""
    assert bool(trees.all_finite(exchange(name, which)[1]))


@pytest.mark.parametrize("name", [name for name, codec in CODECS.items() if codec.error_bound])
def test_the_error_stays_within_the_stated_bound(name, which):
    for seed in range(3):
        _, decoded, bound = exchange(name, which, seed)
        for got, sent, most in zip(*map(jax.tree.leaves, (decoded, TREES[which], bound)), strict=True):
            # one part in 2**20 for the float32 arithmetic of scaling there and back
            limit = np.asarray(most, np.float64) + 2.0**-20 * np.abs(np.asarray(sent, np.float64)) + SMALLEST_NORMAL
            assert np.all(np.abs(np.asarray(got, np.float64) - np.asarray(sent, np.float64)) <= limit)


# Combinators state no bound, and without it nothing says how seldom a value of the smallest tree is drawn.
UNBIASED = [
    (name, which)
    for name, codec in CODECS.items()
    for which in AVERAGED
    if codec.unbiased and (which != "smallest" or codec.error_bound or name.startswith("evofed"))
]


@pytest.mark.parametrize(("name", "which"), UNBIASED)
def test_an_unbiased_codec_is_right_on_average(name, which):
    _, stacked, decoded = many(name, which)
    bound = exchange(name, which)[2]
    bounds = jax.tree.leaves(bound) if bound else [np.zeros(())] * len(jax.tree.leaves(decoded))
    names = trees.named_leaves(NORMAL)
    for path, got, sent, most in zip(names, jax.tree.leaves(decoded), jax.tree.leaves(stacked), bounds, strict=True):
        if trees.is_clip(path):
            continue  # raised by some, as they say
        for kind in range(3):
            one, all_got = np.asarray(sent[kind], np.float64), np.asarray(got[kind::3], np.float64)
            # Of two neighbors at most b apart, one of which is zero, the variance is at most b |x|. That counts where
            # the larger is drawn so rarely, in 1300 draws, that their own deviation says little.
            rare = np.sqrt(2.0 * np.asarray(most, np.float64) * np.abs(one)) if np.ndim(most) else 0.0
            error = np.maximum(all_got.std(axis=0), rare) / np.sqrt(len(all_got))
            # 5 standard errors over about 130 values: a false alarm once in 13,000 runs, and the seed is fixed
            slack = 1e-6 * np.abs(one) + UNDERFLOW.get(name.split("-")[0], 1) * SMALLEST_NORMAL
            assert np.all(np.abs(all_got.mean(axis=0) - one) <= 5 * error + slack)


def squared_errors(decoded, stacked, nearest=False):
    """float64 `[draws]`: squared error over squared norm of the float32 leaves; of the nearest multiple, if asked."""
    error = norm = 0.0
    for got, sent in zip(jax.tree.leaves(decoded), jax.tree.leaves(stacked), strict=True):
        if sent.dtype != np.float32 or not sent.size:
            continue
        x, y = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (sent, got))
        if nearest:
            y = y * np.maximum(0, (x * y).sum(1) / np.maximum((y * y).sum(1), 1e-300))[:, None]
        error, norm = error + ((y - x) ** 2).sum(1), norm + (x**2).sum(1)
    return error / norm


@pytest.mark.parametrize("which", [which for which in AVERAGED if which != "smallest"])
@pytest.mark.parametrize("name", [name for name, codec in CODECS.items() if codec.contracts])
def test_a_codec_that_says_that_it_contracts_does(name, which):
    """On average over 100 messages or more; some err by less than the norm in each of them."""
    _, stacked, decoded = many(name, which)
    assert squared_errors(decoded, stacked).mean() < 1 - 1e-3


@pytest.mark.parametrize("which", [which for which in AVERAGED if which != "smallest"])
@pytest.mark.parametrize("name", [n for n, c in CODECS.items() if (c.aligned or c.unbiased) and not c.contracts])
def test_a_multiple_of_what_is_aligned_contracts(name, which):
    _, stacked, decoded = many(name, which)
    assert squared_errors(decoded, stacked, nearest=True).mean() < 1 - 1e-3


def test_an_unbiased_codec_may_err_by_more_than_it_sends():
    """What `contracts` is for: 1 bit after a rotation, and a tenth of the values ten times as large."""
    for name in ("rotated-1", "randomk-0"):
        _, stacked, decoded = many(name, "normal")
        assert CODECS[name].unbiased and not CODECS[name].contracts
        assert squared_errors(decoded, stacked).mean() > 1


SINGLE = {"one": (1, 1), "few": (1, 3), "none": (0, 4)}


@pytest.mark.parametrize("shape", SINGLE.values(), ids=SINGLE)
def test_no_message_is_larger_than_float32(name, shape):
    """Tiny leaves stay as they are; a message whose size does not depend on the tree's is refused."""
    tree, codec = {"u": {"a": jnp.ones(shape)}}, CODECS[name]
    if name.split("-")[0] in ("count_sketch", "evofed") and jnp.zeros(shape).size:
        with pytest.raises(UserError, match="no smaller than"):
            codec.init(tree)
        return
    if name.startswith(("chain", "per_path", "skip")):
        return  # theirs are those of the codecs inside, and a bit a piece
    message = jax.eval_shape(lambda t: codec.encode(jax.random.key(0), codec.init(t), t)[0], tree)
    factors = 4 if isinstance(message, Scaled) else 0
    assert trees.num_bytes(message) - factors <= trees.num_bytes(tree)


def test_keys_of_any_kind_do(name):
    """As the encoding key, and as the kind that JAX makes where none is named; those of `rbg` have four words."""
    codec = CODECS[name]
    with jax.default_prng_impl("rbg"):
        run = lambda t: codec.decode(codec.init(t), codec.encode(jax.random.key(0), codec.init(t), t)[0])
        assert trees.shapes(jax.eval_shape(run, NORMAL)) == trees.shapes(NORMAL)


def test_message_shapes_are_known_without_encoding(name):
    expected = message_shapes(name)
    message, _, _ = exchange(name, "normal")
    assert trees.num_bytes(expected) == sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(message))
    assert jax.tree.structure(expected) == jax.tree.structure(message)


def test_the_message_on_the_wire_has_the_counted_length(name, which):
    """What the link counts, what `wire` says, and what it writes are one number, and fewer for parts left out."""
    message, _, _ = exchange(name, which)
    counted = sum(size * int(there) for size, there in trees.pieces(message).values())
    assert counted == wire.size(message) == len(wire.pack(message)) - wire.HEADER_BYTES
    everything = trees.num_bytes(message)
    assert counted <= everything if name in WITH_PARTS else counted == everything


def test_what_was_unpacked_is_the_message(name):
    message, _, _ = exchange(name, "normal")
    unpacked = wire.unpack(wire.pack(message), message)
    assert jax.tree.structure(unpacked) == jax.tree.structure(message)
    for a, b in zip(jax.tree.leaves(unpacked), jax.tree.leaves(message), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


COMBINATORS = ("chain", "delta", "error_feedback", "per_path", "skip")


@pytest.mark.parametrize("name", [n for n in CODECS if n.endswith("-0") and n[:-2] not in COMBINATORS])
def test_jit_changes_nothing(name):
    """Operation by operation, the message is the one of the compiled program."""
    codec = CODECS[name]
    plain, _ = codec.encode(jax.random.key(0), codec.init(NORMAL), NORMAL)
    jitted, _, _ = exchange(name, "normal")
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=0, atol=tolerance(name))


# One example a codec, and those that `many` is compiled for anyway.
@pytest.mark.parametrize("name", [name for name, c in CODECS.items() if c.unbiased or name.endswith("-0")])
def test_vmap_equals_a_loop_over_clients(name):
    keys, stacked, at_once = many(name)
    for i in range(3):
        _, alone, _ = compiled(name)(keys[i], jax.tree.map(lambda x, i=i: x[i], stacked))
        for a, b in zip(jax.tree.leaves(at_once), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=0, atol=tolerance(name))


def test_the_state_keeps_its_structure(codec):
    state = codec.init(NORMAL)
    _, after = jax.eval_shape(lambda s, t: codec.encode(jax.random.key(0), s, t), state, NORMAL)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert trees.shapes(after) == trees.shapes(state)


@pytest.mark.parametrize("name", WITH_PARTS)
def test_parts_that_are_not_sent_hold_zeros(name, which):
    """So that their number alone says what a message costs, and nothing can leak through them."""
    for sections in sections_of(exchange(name, which)[0]):
        bits = np.unpackbits(np.asarray(sections.present), bitorder="little")
        assert bits.size == 8 * -(-len(sections.parts) // 8)
        assert not bits[len(sections.parts) :].any()
        for bit, part in zip(bits, sections.parts, strict=False):
            assert bit or not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(part))


def test_leaves_that_are_not_float32_pass_through(name):
    _, decoded, _ = exchange(name, "normal")
    np.testing.assert_array_equal(decoded["step"], NORMAL["step"])


SPARSIFIERS = {"topk": topk(0.4), "randomk": randomk(0.4)}
QUANTIZERS = {
    "adaptive": adaptive(),
    "block_fp8": block_fp8(block=8),
    "codebook": codebook(2),
    "drive": drive(),
    "eden": eden(),
    "fp8": fp8(),
    "fp8 max": fp8(clip="max"),
    "narrow": narrow(),
    "rotated": rotated(),
    "sign": sign(),
    "terngrad": terngrad(),
    "uniform": uniform(4),
}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
def test_every_quantizer_encodes_what_every_sparsifier_keeps(sparsifier, quantizer):
    """The positions arrive exactly, the values as the quantizer alone would send them, and the bytes are counted."""
    first, second = SPARSIFIERS[sparsifier], QUANTIZERS[quantizer]
    codec, tree = chain((first, second)), {"a": NORMAL["params"]["layer"]["kernel"]}
    encode = jax.jit(lambda key, tree: codec.encode(key, codec.init(tree), tree)[0])
    message = encode(jax.random.key(1), tree)
    decoded = codec.decode(codec.init(tree), message)["a"]
    sparse, _ = first.encode(jax.random.fold_in(jax.random.key(1), 0), (), tree)
    sent, kept = np.asarray(first.decode((), sparse)["a"]), np.asarray(decoded)
    assert kept.shape == (7, 5) and np.isfinite(kept).all()
    assert not kept[sent == 0].any() and kept.any()
    # No quantizer here errs by as much as the length of what it is given, but for the unbiased ones of 1 or 2 bits.
    assert np.linalg.norm(kept - sent) < (3 if codec.unbiased else 1) * np.linalg.norm(sent)
    counted = sum(size * int(there) for size, there in trees.pieces(message).values())
    assert counted == wire.size(message) == len(wire.pack(message)) - wire.HEADER_BYTES
    assert counted < wire.size(sparse)
