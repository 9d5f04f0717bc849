"""Random image augmentation on the device: `augment(key, x) -> x` on batches [B, H, W, C], pure and jit-able.

Every example gets its own draw, the shape and dtype stay, and the same key gives the same result. The draws can be had
on their own (`flip_choices`, `crop_offsets`), for tests and for figures.

    augment = chain(crop(padding=4), flip())
    x = augment(key, x)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def flip(probability: float = 0.5) -> Augment:
    """Mirrors each image left to right (along W) with the given probability."""
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability is {probability}; it must lie in [0, 1]")

    def augment(key: jax.Array, x: jax.Array) -> jax.Array:
        _check_images(x)
        mirrored = flip_choices(key, x.shape[0], probability)
        return jnp.where(mirrored[:, None, None, None], x[:, :, ::-1, :], x)

    return augment


def crop(padding: int = 4) -> Augment:
    """Cuts a random [H, W] window from each image padded with `padding` zeros of its dtype on all sides.

    The usual CIFAR augmentation (He et al., Deep residual learning for image recognition, section 4.2).
    """
    if padding < 0 or int(padding) != padding:
        raise ValueError(f"padding is {padding}; it must be a whole number of pixels, 0 or more")

    def augment(key: jax.Array, x: jax.Array) -> jax.Array:
        _check_images(x)
        padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        offsets = crop_offsets(key, x.shape[0], padding)

        def window(image, offset):
            return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), x.shape[1:])

        return jax.vmap(window)(padded, offsets)

    return augment


def chain(*augments: Augment) -> Augment:
    """Applies the augmentations from left to right, each with its own key; without any, the identity."""

    def augment(key: jax.Array, x: jax.Array) -> jax.Array:
        for position, one in enumerate(augments):
            x = one(jax.random.fold_in(key, position), x)
        return x

    return augment


def flip_choices(key: jax.Array, batch_size: int, probability: float) -> jax.Array:
    """[B] bool: which images `flip` mirrors with this key."""
    return jax.random.bernoulli(key, probability, (batch_size,))


def crop_offsets(key: jax.Array, batch_size: int, padding: int) -> jax.Array:
    """[B, 2] int32 in [0, 2 * padding]: top left corners of the windows `crop` cuts from padded images."""
    return jax.random.randint(key, (batch_size, 2), 0, 2 * padding + 1)


def _check_images(x: jax.Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"x has shape {x.shape}; image augmentation needs [B, H, W, C]")
