"""The dense product for large kernels and small batches computes what lax does, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax8.models import dense

DENSE = (((1,), (0,)), ((), ()))


def gradients(dot, x, kernel, weights):
    """(value, gradient for x, for the kernel) of a weighted sum of the product."""
    y = dot(x, kernel, DENSE)
    dx, dk = jax.grad(lambda x, k: jnp.sum(weights * dot(x, k, DENSE)), (0, 1))(x, kernel)
    return y, dx, dk


@pytest.mark.parametrize("batch", [1, 3, dense.SMALL_BATCH, dense.SMALL_BATCH + 1])
def test_values_and_gradients_equal_numpy(batch, rng):
    x, kernel, weights = (rng.standard_normal(s).astype(np.float32) for s in ((batch, 8192), (8192, 64), (batch, 64)))
    assert kernel.nbytes == dense.LARGE_BYTES
    y, dx, dk = gradients(dense.dot_general, x, kernel, weights)
    wide = [a.astype(np.float64) for a in (x, kernel, weights)]
    # Sums of 8192 products of unit size are about 90; float32 keeps 2e-7 of each of their partial sums.
    np.testing.assert_allclose(y, wide[0] @ wide[1], atol=2e-3)
    np.testing.assert_allclose(dx, wide[2] @ wide[1].T, atol=1e-4)
    np.testing.assert_allclose(dk, wide[0].T @ wide[2], atol=1e-4)


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "dtype"),
    [((4, 8), (8, 3), "float32"), ((2, 4, 8), (8, 3), "float32"), ((4, 8192), (8192, 64), "bfloat16")],
)
def test_everything_else_is_laxs_product(x_shape, kernel_shape, dtype, rng):
    x, kernel = (jnp.asarray(rng.standard_normal(s), dtype) for s in (x_shape, kernel_shape))
    numbers = (((len(x_shape) - 1,), (0,)), ((), ()))
    got = jax.make_jaxpr(lambda a, b: dense.dot_general(a, b, numbers))(x, kernel)
    assert str(got) == str(jax.make_jaxpr(lambda a, b: lax.dot_general(a, b, numbers))(x, kernel))


def test_clients_with_their_own_kernels_are_mapped(rng):
    x, kernel = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 3, 8192), (2, 8192, 64)))
    got = jax.vmap(lambda x, k: gradients(dense.dot_general, x, k, 1.0))(x, kernel)
    want = jax.vmap(lambda x, k: gradients(lax.dot_general, x, k, 1.0))(x, kernel)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
