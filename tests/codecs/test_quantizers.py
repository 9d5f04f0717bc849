"""Quantizers value by value: `uniform`, `adaptive`, `sign`, `terngrad`; by hand and against their stated laws."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.codecs.adaptive import adaptive
from fedjax8.codecs.block_fp8 import block_fp8
from fedjax8.codecs.chain import chain
from fedjax8.codecs.sign import sign
from fedjax8.codecs.terngrad import terngrad
from fedjax8.codecs.uniform import uniform
from fedjax8.numerics import unpack_bits

ternary = importlib.import_module("fedjax8.codecs.terngrad")
KEY = jax.random.key(0)
QUANTIZERS = {
    "uniform": uniform(4),
    "adaptive": adaptive(),
    "sign": sign(),
    "terngrad": terngrad(),
    "block": block_fp8(),
}


def gaussian(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def encode(codec, x, key=KEY):
    return codec.encode(key, (), x)[0]


def send(codec, x, key=KEY):
    return np.asarray(codec.decode((), encode(codec, x, key)))


def draws(codec, x, count=2000):
    """float64 `[count, ...]`."""
    keys = jax.random.split(jax.random.key(1), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: codec.decode((), encode(codec, x, key))))(keys), np.float64)


# Which leaves are taken.


@pytest.mark.parametrize("name", QUANTIZERS)
def test_small_leaves_and_clips_stay_as_they_are(name):
    tree = {"kernel": gaussian((4, 4)), "bias": jnp.ones(40), "kernel_clip": jnp.full((1, 1), 3.0)}
    message = encode(QUANTIZERS[name], tree)
    assert message["bias"] is tree["bias"]
    assert message["kernel_clip"] is tree["kernel_clip"]
    assert message["kernel"] is not tree["kernel"]


def test_leaves_are_chosen_by_dimensions_and_by_elements():
    tree = {"kernel": gaussian((4, 4)), "bias": gaussian((20,)), "small": gaussian((3, 3))}
    message = encode(uniform(min_ndim=1, min_size=10), tree)
    assert {n for n, x in message.items() if not isinstance(x, jax.Array)} == {"kernel", "bias"}
    with pytest.raises(ValueError, match="min_size must be at least 0; got -3"):
        uniform(min_size=-3)


def test_a_quantizer_after_another_codec_takes_the_float32_values_that_are_left():
    codec = chain([block_fp8(scale="float32", block=10), uniform(8, min_ndim=0)])
    message, _ = codec.encode(KEY, codec.init(gaussian((10, 10))), gaussian((10, 10)))
    assert trees.num_bytes(message) == 100 + (10 + 4)  # the scales, as ten codes and their norm
    assert message.scales.norm.shape == (1,)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_value_that_is_not_finite_shows(name):
    for bad in (jnp.nan, jnp.inf):
        assert not np.isfinite(send(QUANTIZERS[name], gaussian((4, 8)).at[1, 2].set(bad))).all()


def test_what_quantizing_did_is_measured():
    tree, decoded = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.ones(3)}, {"kernel": jnp.ones((2, 2)), "bias": 0}
    part, whole = uniform().measure(tree, decoded)["quantization_error"]
    assert (float(part), float(whole)) == (4.0, 16.0)
    assert uniform().measure({"bias": jnp.ones(3)}, {"bias": jnp.ones(3)}) == {}


def test_a_leaf_is_encoded_before_it_is_decoded_in_one_program():
    """What `xla_cpu.apart` is for: a conditional that XLA keeps. Fused, each bit read would be a code computed anew."""

    def round_trip(key, x):
        codec = adaptive()
        message, state = codec.encode(key, (), {"w": x})
        return codec.decode(state, message)

    text = jax.jit(round_trip).lower(KEY, jnp.ones((16, 8))).compile().as_text()
    assert ("conditional(" in text) == (jax.default_backend() == "cpu")


# uniform


@pytest.mark.parametrize("bits, bucket, want", [(8, None, 100 + 4), (3, None, 38 + 4), (1, 32, 13 + 4 * 4)])
def test_uniform_costs_its_packed_codes_and_its_norms(bits, bucket, want):
    assert trees.num_bytes(encode(uniform(bits, bucket=bucket), gaussian((10, 10)))) == want


def test_uniform_values_are_the_neighbors_among_the_levels_of_the_norm():
    """By hand: norm 5 and 2 levels; 3 lies between 2.5 and 5, 4 as well."""
    x = jnp.array([[3.0, 0.0], [-4.0, 0.0]])
    got = draws(uniform(3, "l2", levels=2), x, 200)
    assert set(got[:, 0, 0].tolist()) == {2.5, 5.0}
    assert set(got[:, 1, 0].tolist()) == {-2.5, -5.0}
    assert not got[:, :, 1].any()
    np.testing.assert_array_equal(send(uniform(2), jnp.array([[2.0, -2.0, 0.0]])), [[2.0, -2.0, 0.0]])


@pytest.mark.parametrize("norm", ["l2", "max"])
def test_uniform_is_unbiased_with_the_stated_variance(norm):
    x = gaussian((8, 8))
    got = draws(uniform(4, norm, levels=4), x)
    v = np.asarray(x, np.float64)
    error = np.sqrt(np.mean((got - v) ** 2, axis=0) / 2000)
    assert np.all(np.abs(got.mean(axis=0) - v) <= 5 * error + 1e-6)
    factor = np.mean(np.sum((got - v) ** 2, axis=(1, 2))) / np.sum(v**2)
    if norm == "l2":
        assert factor <= min(64 / 4**2, math.sqrt(64) / 4)
        assert factor == pytest.approx(0.63, abs=0.1)  # the spec's figure for d = 64, s = 4, another Gaussian vector
    else:
        assert factor <= 64 * np.abs(v).max() ** 2 / (4 * 4**2) / np.sum(v**2)


def test_one_bit_has_two_values_and_its_variance_is_exact():
    x = gaussian((4, 4))
    got = draws(uniform(1), x)
    norm = float(jnp.max(jnp.abs(x)))
    np.testing.assert_allclose(np.abs(got), norm, rtol=1e-6)
    measured, want = np.mean((got - np.asarray(x)) ** 2, axis=0), norm**2 - np.asarray(x, np.float64) ** 2
    # the squared error takes two values, (norm - x)**2 and (norm + x)**2: its deviation over 2000 draws is at most
    np.testing.assert_allclose(measured, want, atol=5 * 2 * norm**2 / math.sqrt(2000))


def test_buckets_are_quantized_each_by_its_own_norm():
    x = jnp.concatenate([jnp.full(32, 1e-3), jnp.full(32, 1e3), jnp.full(5, -7.0)]).reshape(3, 23)
    message = encode(uniform(2, bucket=32), x)
    np.testing.assert_allclose(message.norm, [1e-3, 1e3, 7.0])
    np.testing.assert_allclose(send(uniform(2, bucket=32), x), x, rtol=1e-6)


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"bits": 9}, "from 1 to 8; got 9"),
        ({"bits": 2.5}, "got 2.5"),
        ({"norm": "l1"}, "norm must be one of l2, max; got 'l1'"),
        ({"bits": 3, "levels": 4}, "levels must be from 1 to 3 for bits=3; got 4"),
        ({"bits": 1, "levels": 1}, "left out for bits=1"),
        ({"bucket": 0}, "bucket must be at least 1; got 0"),
    ],
)
def test_bad_settings_of_uniform_are_named(settings, word):
    with pytest.raises(ValueError, match=word):
        uniform(**settings)


# adaptive


def sent_bytes(message):
    """Bytes of what is present."""
    bits = np.unpackbits(np.asarray(message.planes.present), bitorder="little")
    absent = sum(part.nbytes for bit, part in zip(bits, message.planes.parts, strict=False) if not bit)
    return trees.num_bytes(message) - absent


@pytest.mark.parametrize("largest, levels, bits", [(0.1, 66, 8), (0.01, 21, 6), (1e-5, 1, 2)])
def test_adaptive_takes_the_bits_that_the_range_asks_for(largest, levels, bits):
    """FedOBD's omega = 0.001: sqrt(44361 * 0.1) = 66.6, sqrt(44361 * 0.01) = 21.06, at least 1."""
    x = largest * jnp.linspace(-1, 1, 80).reshape(8, 10)
    message = encode(adaptive(0.001), x)
    assert int(message.levels) == levels
    assert math.ceil(math.log2(levels + 1)) + 1 == bits
    assert sent_bytes(message) == (4 + 4 + 2) + 2 + 10 * bits


def test_adaptive_errs_by_half_a_level_at_most_also_where_all_values_are_negative():
    for shift in (0.0, -3.0, 5.0):
        x = np.asarray(0.2 * gaussian((20, 20)) + shift)
        middle = (x.max() + x.min()) / 2
        a = np.abs(x - middle).max()
        s = math.floor(math.sqrt(a * 32 * math.log(4) / 0.001))
        message = encode(adaptive(), jnp.asarray(x))
        assert int(message.levels) == s
        np.testing.assert_allclose(send(adaptive(), x), x, rtol=0, atol=a / (2 * s) + 2.0**-22 * 6)
        codes = sum(np.asarray(unpack_bits(p, 1, 400)).astype(int) << i for i, p in enumerate(message.planes.parts[1:]))
        np.testing.assert_array_equal(codes.max(), s)
        assert np.abs(codes - np.abs(x - middle).ravel() / a * s).max() <= 0.5 + 1e-4  # float32 arithmetic


def test_a_constant_leaf_is_exact_and_sends_no_plane():
    for value in (0.0, 0.7, -1e30):
        x = jnp.full((3, 5), value)
        assert sent_bytes(encode(adaptive(), x)) == 10 + 2
        np.testing.assert_array_equal(send(adaptive(), x), x)


def test_levels_are_capped_by_the_number_of_planes():
    message = encode(adaptive(1e-6, max_bits=5), gaussian((4, 4)))
    assert int(message.levels) == 15
    assert len(message.planes.parts) == 5
    for settings, word in (({"omega": 0.0}, "omega must be positive; got 0"), ({"max_bits": 17}, "2 to 16; got 17")):
        with pytest.raises(ValueError, match=word):
            adaptive(**settings)


# sign


def test_signs_travel_as_bits_and_the_scale_is_the_mean_magnitude():
    x = jnp.array([[1.0, -2.0, 0.0], [-0.0, 6.0, -3.0]])
    message = encode(sign(), x)
    assert message.negative.tolist() == [0b100010]  # zero, of either sign, counts as positive
    assert trees.num_bytes(message) == 1 + 4
    np.testing.assert_allclose(send(sign(), x), [[2, -2, 2], [2, 2, -2]], rtol=1e-6)


def test_signs_without_a_scale_are_a_vote_of_one_bit():
    x = jnp.array([[1e-9, -2e20], [0.0, -3.0]])
    assert trees.num_bytes(encode(sign("none"), x)) == 1
    np.testing.assert_array_equal(send(sign("none"), x), [[1, -1], [1, -1]])
    votes = np.mean([send(sign("none"), s * x) for s in (1.0, 1.0, -1.0)], axis=0)
    np.testing.assert_array_equal(np.sign(votes), [[1, -1], [1, -1]])


def test_the_scaled_sign_is_a_contraction_by_the_stated_factor():
    x = np.asarray(gaussian((9, 9)), np.float64)
    error = np.sum((send(sign(), jnp.float32(x)) - x) ** 2)
    factor = 1 - np.abs(x).sum() ** 2 / (81 * np.sum(x**2))
    assert error == pytest.approx(factor * np.sum(x**2), rel=1e-5)
    assert factor <= 1 - 1 / 81


def test_feeding_errors_back_telescopes():
    """Error feedback by hand: what was sent and the last error add up to what was to be sent."""
    updates, error, total = [gaussian((5, 5), seed) for seed in range(6)], jnp.zeros((5, 5)), 0
    for update in updates:
        sent = send(sign(), error + update)
        error, total = error + update - sent, total + sent
    np.testing.assert_allclose(total + error, sum(updates), atol=1e-5)


def test_scales_of_sign_are_named():
    with pytest.raises(ValueError, match="scale must be one of l1, none; got 'l2'"):
        sign("l2")


# terngrad


@pytest.mark.parametrize("packing, want", [("plain", 25 + 4), ("base3", 20 + 4)])
def test_ternary_values_and_their_bytes(packing, want):
    x = gaussian((10, 10))
    codec = terngrad(None, packing)
    assert trees.num_bytes(encode(codec, x)) == want
    a = np.float32(np.abs(x).max())
    assert set(np.unique(send(codec, x))) == {-a, np.float32(0), a}


def test_both_packings_decode_alike():
    x = gaussian((7, 9))
    np.testing.assert_array_equal(send(terngrad(packing="plain"), x), send(terngrad(packing="base3"), x))


@pytest.mark.parametrize("count", [1, 4, 5, 13])
def test_five_ternary_digits_make_a_byte(count):
    codes = np.random.default_rng(count).integers(0, 3, count).astype(np.uint8)
    padded = np.pad(codes, (0, -count % 5)).reshape(-1, 5)
    packed = np.asarray(ternary.pack_base3(jnp.asarray(codes)))
    np.testing.assert_array_equal(packed, padded @ [1, 3, 9, 27, 81])
    np.testing.assert_array_equal(ternary.unpack_base3(jnp.asarray(packed), count), codes)


def test_ternary_rounding_is_unbiased_up_to_the_clip_with_the_stated_variance():
    x = gaussian((8, 8)).at[0, 0].set(9.0)
    got, v = draws(terngrad(), x), np.asarray(x, np.float64)
    a = 2.5 * math.sqrt(np.mean(v**2))
    assert a < 9
    clipped = np.clip(v, -a, a)
    error = np.sqrt(np.abs(clipped) * (a - np.abs(clipped)) / 2000)
    assert np.all(np.abs(got.mean(axis=0) - clipped) <= 5 * error + 1e-5)
    np.testing.assert_allclose(np.unique(np.abs(got)), [0, a], rtol=1e-6)


def test_a_constant_leaf_is_not_clipped_away():
    np.testing.assert_allclose(send(terngrad(), jnp.full((3, 3), -0.3)), -0.3, rtol=1e-6)


def test_bad_settings_of_terngrad_are_named():
    with pytest.raises(ValueError, match="packing must be one of plain, base3; got 'huffman'"):
        terngrad(packing="huffman")
    with pytest.raises(ValueError, match=r"clip must be at least 1 standard deviation, or None; got 0\.5"):
        terngrad(0.5)
