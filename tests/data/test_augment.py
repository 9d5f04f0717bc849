"""Augmentation against a NumPy oracle that is given the draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.data.augment import chain, crop, crop_offsets, flip, flip_choices


def images(batch, height=6, width=5, channels=2, dtype=np.uint8):
    values = np.random.default_rng(0).integers(1, 250, (batch, height, width, channels))
    return values.astype(dtype)


def cropped(x, offsets, padding):
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = x.shape[1:3]
    corners = zip(padded, np.asarray(offsets).tolist(), strict=True)
    return np.stack([image[top : top + height, left : left + width] for image, (top, left) in corners])


@pytest.mark.parametrize(("dtype", "padding"), [(np.uint8, 4), (np.float32, 1), (jnp.bfloat16, 4), (np.uint8, 0)])
def test_crop_cuts_the_drawn_window_from_the_zero_padded_image(dtype, padding):
    key, x = jax.random.key(3), images(16, dtype=dtype)
    result = jax.jit(crop(padding))(key, x)
    assert result.dtype == x.dtype and result.shape == x.shape
    expected = cropped(x, crop_offsets(key, 16, padding), padding)
    np.testing.assert_array_equal(np.asarray(result), expected)


def test_flip_mirrors_the_drawn_images_along_the_width():
    key, x = jax.random.key(1), images(32)
    result, drawn = np.asarray(flip()(key, x)), np.asarray(flip_choices(key, 32, 0.5))
    assert 0 < drawn.sum() < 32
    np.testing.assert_array_equal(result[drawn], x[drawn][:, :, ::-1])
    np.testing.assert_array_equal(result[~drawn], x[~drawn])


def test_flip_probabilities_zero_and_one_are_certain():
    key, x = jax.random.key(1), images(8)
    np.testing.assert_array_equal(np.asarray(flip(0.0)(key, x)), x)
    np.testing.assert_array_equal(np.asarray(flip(1.0)(key, x)), x[:, :, ::-1])


def test_flips_occur_as_often_as_asked():
    drawn = np.asarray(flip_choices(jax.random.key(0), 10_000, 0.3))
    # 10000 draws, standard error sqrt(0.3 * 0.7 / 10000) = 0.0046; four of them allowed.
    assert abs(drawn.mean() - 0.3) < 4 * 0.0046


def test_offsets_are_uniform_and_independent_in_both_directions():
    offsets = np.asarray(crop_offsets(jax.random.key(0), 18_000, 1))
    counts = np.bincount(offsets[:, 0] * 3 + offsets[:, 1], minlength=9)
    # 18000 draws, nine windows: 2000 each, standard error sqrt(18000 / 9 * 8 / 9) = 42; four of them allowed.
    assert np.abs(counts - 2000).max() < 4 * 42


def test_chain_applies_its_parts_from_left_to_right_with_different_keys():
    key, x = jax.random.key(5), images(12)
    result = np.asarray(jax.jit(chain(crop(padding=2), flip()))(key, x))
    first, second = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    expected = cropped(x, crop_offsets(first, 12, 2), 2)
    mirrored = np.asarray(flip_choices(second, 12, 0.5))
    expected[mirrored] = expected[mirrored][:, :, ::-1]
    np.testing.assert_array_equal(result, expected)


def test_an_empty_chain_changes_nothing():
    x = images(3)
    np.testing.assert_array_equal(np.asarray(chain()(jax.random.key(0), x)), x)


def test_the_same_key_gives_the_same_result_under_vmap_over_clients():
    augment, x = chain(crop(padding=2), flip()), images(8).reshape(2, 4, 6, 5, 2)
    keys = jax.random.split(jax.random.key(0), 2)
    together, one = np.asarray(jax.jit(jax.vmap(augment))(keys, x)), jax.jit(augment)
    np.testing.assert_array_equal(together, np.stack([one(k, v) for k, v in zip(keys, x, strict=True)]))
    assert not np.array_equal(together[0], np.asarray(one(keys[1], x[0])))


@pytest.mark.parametrize("make", [lambda: flip(1.5), lambda: flip(-0.1), lambda: crop(-1), lambda: crop(1.5)])
def test_wrong_settings_are_named(make):
    with pytest.raises(ValueError, match=r"(probability|padding) is -?\d"):
        make()


def test_inputs_that_are_not_images_are_refused():
    with pytest.raises(ValueError, match=r"\[B, H, W, C\]"):
        flip()(jax.random.key(0), jnp.zeros((4, 3)))
