"""Codecs that rotate first: `rotated`, `drive`, `eden`."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from fedjax8 import trees
from fedjax8.codecs.drive import drive
from fedjax8.codecs.eden import eden
from fedjax8.codecs.rotated import rotated
from fedjax8.types import Codec

centroids = importlib.import_module("fedjax8.codecs.eden").centroids
KEYS = jax.random.split(jax.random.key(0), 20)
FAMILY = {
    "drive": drive(min_ndim=1),
    "drive min_error": drive("min_error", min_ndim=1),
    "eden 1": eden(1, min_ndim=1),
    "eden 2": eden(2, min_ndim=1),
    "eden 3": eden(3, min_ndim=1),
    "eden 2 min_error": eden(2, "min_error", min_ndim=1),
}


def heavy_tailed(d):
    """Values of very different sizes, such as gradients have."""
    rng = np.random.default_rng(d)
    return jnp.asarray(rng.standard_normal(d) * np.exp(rng.standard_normal(d)), jnp.float32)


def decoded(codec: Codec, x, keys):
    """float64 `[keys, d]`."""
    send = jax.jit(jax.vmap(lambda key: codec.decode((), codec.encode(key, (), x)[0])))
    return np.asarray(send(keys), np.float64)


@pytest.fixture(scope="module")
def draws():
    """Of every codec: what a vector of 1024 values decodes to, under 20 keys."""
    x = heavy_tailed(1024)

    def send(key):
        return {name: codec.decode((), codec.encode(key, (), x)[0]) for name, codec in FAMILY.items()}

    got = jax.jit(jax.vmap(send))(KEYS)
    return np.asarray(x, np.float64), {name: np.asarray(values, np.float64) for name, values in got.items()}


@pytest.mark.parametrize("name", [n for n in FAMILY if "min_error" not in n])
def test_the_product_with_the_vector_is_its_squared_norm_for_every_key(draws, name):
    x, got = draws[0], draws[1][name]
    np.testing.assert_allclose(got @ x, x @ x, rtol=1e-5)  # sums of 1024 float32 products


@pytest.mark.parametrize("name", [n for n in FAMILY if "min_error" in n])
def test_at_the_least_squares_scale_the_error_is_orthogonal_to_what_is_decoded(draws, name):
    x, got = draws[0], draws[1][name]
    np.testing.assert_allclose(np.sum(got * (x - got), axis=1), 0, atol=1e-5 * (x @ x))
    assert np.all(np.sum((x - got) ** 2, axis=1) < x @ x)


@pytest.mark.parametrize(
    "name, bits, unbiased",
    [
        ("drive", 1, True),
        ("drive min_error", 1, False),
        ("eden 2", 2, True),
        ("eden 3", 3, True),
        ("eden 2 min_error", 2, False),
    ],
)
def test_normalized_errors_are_those_of_a_gaussian_rotated_vector(draws, name, bits, unbiased):
    """M / (1 - M) and M, with Max's table (1960) of mean squared errors; M = 1 - 2 / pi for one bit."""
    x, got = draws[0], draws[1][name]
    error = {1: 1 - 2 / math.pi, 2: 0.1175, 3: 0.03454}[bits]
    want = error / (1 - error) if unbiased else error
    measured = np.mean(np.sum((got - x) ** 2, axis=1)) / (x @ x)
    # at D = 1024 the rotated values are near a Gaussian, not one: the spec's measured 0.556 for 0.571 is 3% below
    assert measured == pytest.approx(want, rel=0.06)


def test_one_bit_of_eden_is_drive(draws):
    np.testing.assert_allclose(draws[1]["eden 1"], draws[1]["drive"], rtol=0, atol=1e-4)


def test_what_is_left_of_the_error_after_averaging_many_keys_is_small_for_large_vectors():
    """The bias of the Hadamard rotation: far below one draw's error of 0.57 ||x||**2, of which 1 / 2000 remains."""
    x = heavy_tailed(256)
    got = decoded(drive(min_ndim=1), x, jax.random.split(jax.random.key(1), 2000)).mean(axis=0)
    x = np.asarray(x, np.float64)
    assert np.sum((got - x) ** 2) < 0.01 * (x @ x)


def test_a_pair_of_values_shows_that_drive_with_a_hadamard_rotation_is_biased():
    """By hand: rotated values, 0.75 or 0.25, have the sign of the larger one, the smaller is lost: 2 S = 1.25."""
    got = decoded(drive(min_ndim=1), jnp.array([1.0, 0.5, 0.0, 0.0]), KEYS)
    np.testing.assert_allclose(got, np.broadcast_to([1.25, 0.0, 0.0, 0.0], (20, 4)), atol=1e-6)
    assert not drive().unbiased
    assert not eden().unbiased


@pytest.mark.parametrize(
    "codec, bits, numbers", [(drive(), 1, 1), (eden(3), 3, 1), (rotated(5), 5, 2)], ids=["drive", "eden", "rotated"]
)
def test_a_leaf_costs_its_padded_codes_its_numbers_and_the_key(codec, bits, numbers):
    tree = {"kernel": jnp.ones((5, 20)), "bias": jnp.ones(3)}
    message, _ = codec.encode(KEYS[0], (), tree)
    assert trees.num_bytes(message) == 128 * bits // 8 + 4 * numbers + 8 + 4 * 3
    assert message["kernel"].key.dtype == jnp.uint32


@pytest.mark.parametrize("codec", [drive(), eden(), rotated()], ids=["drive", "eden", "rotated"])
def test_rotations_differ_between_clients_and_between_leaves(codec):
    tree = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    first, second = (codec.encode(key, (), tree)[0] for key in KEYS[:2])
    keys = {tuple(np.asarray(m[n].key).tolist()) for m in (first, second) for n in ("a", "b")}
    assert len(keys) == 4


@pytest.mark.parametrize("codec", [drive(), eden(), rotated()], ids=["drive", "eden", "rotated"])
def test_an_all_zero_leaf_decodes_to_zeros_and_a_nan_shows(codec):
    send = jax.jit(lambda x: codec.decode((), codec.encode(KEYS[0], (), x)[0]))
    assert not np.asarray(send(jnp.zeros((3, 5)))).any()
    assert np.isnan(np.asarray(send(jnp.zeros((3, 5)).at[1, 1].set(jnp.nan)))).all()


def test_rotated_rounding_errs_by_a_step_at_most_in_the_rotated_domain():
    x = heavy_tailed(128)
    codec = rotated(4, min_ndim=1)
    message, _ = codec.encode(KEYS[0], (), x)
    error = np.linalg.norm(np.asarray(codec.decode((), message) - x))
    step = float(message.step) * 2**5  # sent over 2 * 2**4, where 2**4 is the power of two above sqrt(128)
    assert 0 < error <= math.sqrt(128) * step


def test_rotated_levels_span_the_extremes_so_one_value_is_exact():
    """By hand: a vector with one value is +-c / sqrt(D) everywhere after rotation; with two values, both are levels."""
    x = jnp.zeros(16).at[5].set(-3.0)
    np.testing.assert_allclose(decoded(rotated(1, min_ndim=1), x, KEYS), np.tile(x, (20, 1)), atol=1e-6)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_centroid_is_the_mean_of_its_cell(bits):
    """Both conditions of Lloyd and Max, with the integrals done numerically."""
    c = np.array(centroids(bits))
    assert c.size == 2**bits
    np.testing.assert_array_equal(c, -c[::-1])
    edges = [-np.inf, *(c[1:] + c[:-1]) / 2, np.inf]

    def density(t):
        return math.exp(-t * t / 2)

    for i in {c.size // 2, c.size // 2 + c.size // 4, c.size - 1}:
        low, high = edges[i], edges[i + 1]
        moment = integrate.quad(lambda t: t * density(t), low, high, epsabs=0, epsrel=1e-11)[0]
        mass = integrate.quad(density, low, high, epsabs=0, epsrel=1e-11)[0]
        assert c[i] == pytest.approx(moment / mass, abs=1e-8)


@pytest.mark.parametrize(
    "bits, published",
    [
        (1, [0.7980]),
        (2, [0.4528, 1.510]),
        (3, [0.2451, 0.7560, 1.344, 2.152]),
        (4, [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733]),
    ],
)
def test_centroids_are_those_that_max_published(bits, published):
    """J. Max, "Quantizing for Minimum Distortion", IRE Trans. Inf. Theory 6, 1960, table I; four digits."""
    np.testing.assert_allclose(np.array(centroids(bits))[2 ** (bits - 1) :], published, rtol=3e-4)


@pytest.mark.parametrize(
    "build, word",
    [
        (lambda: rotated(0), "bits must be a whole number from 1 to 8; got 0"),
        (lambda: eden(9), "got 9"),
        (lambda: eden(2, "best"), "scale must be one of unbiased, min_error; got 'best'"),
        (lambda: drive("l1"), "'l1'"),
        (lambda: drive(min_ndim=-1), "min_ndim must be at least 0; got -1"),
    ],
)
def test_bad_settings_are_named(build, word):
    with pytest.raises(ValueError, match=word):
        build()
