"""The full message of FedCode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.codecs.codebook import codebook

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def message_bytes(codec, tree):
    return trees.num_bytes(jax.eval_shape(lambda t: codec.encode(KEY, (), t)[0], tree))


@pytest.mark.parametrize(
    ("scalars", "num_bytes"),
    [(269_722, 202_548), (275_572, 206_935), (2_296_922, 1_722_948), (2_412_212, 1_809_415), (3_217_675, 2_413_513)],
)
def test_sizes_of_the_models_of_the_paper(scalars, num_bytes):
    # ResNet-20 and MobileNetV2 for 10 and 100 classes, YAMNet: ceil(6 N / 8) + 256
    tree = {"params": {"a": jax.ShapeDtypeStruct((scalars - 10,), jnp.float32), "b": jnp.zeros((2, 5))}}
    assert message_bytes(codebook(), tree) == num_bytes


@pytest.mark.parametrize(("clusters", "bits"), [(2, 1), (3, 2), (5, 3), (64, 6), (100, 7), (128, 7), (256, 8)])
def test_a_label_takes_as_many_bits_as_the_clusters_need(clusters, bits):
    tree = {"params": {"kernel": jax.ShapeDtypeStruct((2001,), jnp.float32)}}
    assert message_bytes(codebook(clusters), tree) == 4 * clusters + -(-2001 * bits // 8)


def test_values_for_which_a_codebook_does_not_pay_are_sent_as_they_are():
    # 64 clusters of n values: ceil(6 n / 8) + 256 bytes, below 4 n from n = 79 on (60 + 256 = 316 = 4 * 79 is not)
    for size, expected in ((78, 4 * 78), (79, 4 * 79), (80, 60 + 256)):
        assert message_bytes(codebook(), {"a": jax.ShapeDtypeStruct((size,), jnp.float32)}) == expected
        assert message_bytes(codebook(scope="tensor"), {"a": jnp.zeros(3), "b": jnp.zeros(size)}) == 12 + expected


def test_batch_statistics_are_sent_as_they_are_unless_told_otherwise():
    tree = {"params": {"kernel": normal(40, 5)}, "state": {"var": normal(16, seed=1)}}
    assert message_bytes(codebook(8), tree) == 4 * 8 + 75 + 4 * 16
    assert message_bytes(codebook(8, cluster_state=True), tree) == 4 * 8 + 81
    message, _ = codebook(8).encode(KEY, (), tree)
    np.testing.assert_array_equal(codebook(8).decode((), message)["state"]["var"], tree["state"]["var"])
    message, _ = codebook(8, cluster_state=True).encode(KEY, (), tree)
    decoded = codebook(8, cluster_state=True).decode((), message)
    assert np.unique(np.concatenate([np.ravel(x) for x in jax.tree.leaves(decoded)])).size == 8


def test_a_codebook_per_tensor_leaves_small_tensors_as_they_are():
    tree = {"params": {"bias": normal(7), "kernel": normal(40, 5), "scale": 5 + normal(200, seed=2)}}
    codec = codebook(8, scope="tensor")
    assert message_bytes(codec, tree) == 4 * 7 + 2 * (75 + 32)
    message, _ = codec.encode(KEY, (), tree)
    decoded = codec.decode((), message)["params"]
    np.testing.assert_array_equal(decoded["bias"], tree["params"]["bias"])
    assert np.unique(decoded["kernel"]).size <= 8
    assert np.min(decoded["scale"]) > 1  # its own values, not those of the kernel


def test_clips_are_not_clustered():
    tree = {"params": {"kernel": normal(40, 5), "kernel_clip": jnp.float32(0.123)}}
    message, _ = codebook(8).encode(KEY, (), tree)
    assert float(codebook(8).decode((), message)["params"]["kernel_clip"]) == np.float32(0.123)


def test_a_clustered_model_is_sent_without_loss():
    tree = {"params": {"a": jnp.asarray(np.float32([0.1, -0.7, 0.1, 3e5])), "b": jnp.full((3, 2), -0.7)}}
    message, _ = codebook(4).encode(KEY, (), tree)
    jax.tree.map(np.testing.assert_array_equal, codebook(4).decode((), message), tree)
    np.testing.assert_array_equal(message.codebooks[0], np.float32([-0.7, 0.1, 3e5, 3e5]))
    # labels in tree order, two bits each, the lowest first: 1, 0, 1, 2 and six zeros
    assert np.asarray(message.labels[0]).tobytes() == bytes([0b10_01_00_01, 0, 0])


@pytest.mark.parametrize(("setting", "what"), [({"clusters": 1}, "clusters"), ({"clusters": 257}, "clusters")])
def test_impossible_settings_are_refused(setting, what):
    with pytest.raises(ValueError, match=f"{what} must be 2 to 256; got {setting[what]}"):
        codebook(**setting)
    with pytest.raises(ValueError, match="scope must be one of model, tensor; got 'layer'"):
        codebook(scope="layer")
