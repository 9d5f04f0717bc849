"""Low-rank factors of many clients put together, against float64 sums of products and cases worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.algorithms._lora_merge import (
    Factors,
    as_matrices,
    by_norm,
    frobenius,
    mean,
    residual,
    stack,
    summed,
    truncate,
)

CLIENTS, K, R, D = 3, 6, 2, 5
P = np.array([0.5, 0.3, 0.2])


@pytest.fixture
def clients(rng):
    """Three clients, no two alike."""
    a, b = rng.normal(size=(CLIENTS, K, R)), rng.normal(size=(CLIENTS, R, D))
    return Factors(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))


@pytest.fixture
def p():
    return jnp.asarray(P, jnp.float32)


def mean_of_products(clients):
    """sum_i p_i A_i B_i in float64, client by client."""
    a, b = (np.asarray(x, np.float64) for x in clients)
    total = np.zeros((a.shape[1], b.shape[2]))
    for weight, a_i, b_i in zip(P, a, b, strict=True):
        total += weight * (a_i @ b_i)
    return total


def close(got, want):
    # Sums of at most 3 * 2 float32 products of size about 1, with some cancellation.
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


def test_the_mean_holds_every_client(clients, p):
    got = mean(clients, p)
    for factor, of_clients in zip(got, clients, strict=True):
        close(factor, sum(w * np.asarray(x, np.float64) for w, x in zip(P, of_clients, strict=True)))


def test_the_mean_of_factors_is_off_by_their_covariance(clients, p):
    a, b = (np.asarray(x, np.float64) for x in clients)
    a_mean, b_mean = np.tensordot(P, a, 1), np.tensordot(P, b, 1)
    covariance = sum(w * (x - a_mean) @ (y - b_mean) for w, x, y in zip(P, a, b, strict=True))
    close(mean_of_products(clients) - mean(clients, p).product, covariance)
    assert np.abs(covariance).max() > 0.1


def test_the_covariance_vanishes_where_all_share_a_factor(clients, p):
    for same in (
        clients._replace(a=jnp.broadcast_to(clients.a[0], clients.a.shape)),
        clients._replace(b=jnp.broadcast_to(clients.b[0], clients.b.shape)),
    ):
        close(mean(same, p).product, mean_of_products(same))
        close(summed(residual(same, p)), 0.0)


def test_two_clients_of_one_number_each_as_worked_out_by_hand():
    two = Factors(jnp.float32([1.0, 3.0]).reshape(2, 1, 1), jnp.float32([1.0, -1.0]).reshape(2, 1, 1))
    half = jnp.float32([0.5, 0.5])
    assert mean(two, half).product == 0.0
    assert summed(residual(two, half)) == -1.0
    stacked = stack(two, half)
    np.testing.assert_array_equal(stacked.a.ravel(), [0.5, 1.5])
    np.testing.assert_array_equal(stacked.b.ravel(), [1.0, -1.0])
    assert summed(stacked) == -1.0


def test_stack_and_mean_with_residual_are_both_the_mean_of_products_and_the_mean_alone_is_not(clients, p):
    want = mean_of_products(clients)
    close(summed(stack(clients, p)), want)
    close(mean(clients, p).product + summed(residual(clients, p)), want)
    assert np.abs(mean(clients, p).product - want).max() > 0.1


def test_the_pair_of_the_last_client_is_zero_in_the_residual_and_no_other(clients, p):
    for weights in (p, p.at[-1].set(0.0)):
        pairs = residual(clients, weights / weights.sum())
        zero = [not np.any(np.asarray(product)) for product in pairs.product]
        assert zero == ([False, False, True] if weights is p else [False, True, True])


def test_clients_of_weight_zero_change_nothing_wherever_they_stand(clients, p):
    for order in ([0, 1, 2, 3], [3, 0, 1, 2]):
        more = jax.tree.map(lambda x: jnp.concatenate([x, 7.0 + x[:1]])[jnp.asarray(order)], clients)
        weights = jnp.concatenate([p, jnp.zeros(1)])[jnp.asarray(order)]
        for merged in (summed(stack(more, weights)), mean(more, weights).product + summed(residual(more, weights))):
            # The padding's factors, near 7, cancel in residual: 2 * 7 * 7 * 2^-24 times a few.
            np.testing.assert_allclose(merged, mean_of_products(clients), atol=1e-4, rtol=0)


def test_a_convolution_is_merged_as_the_matrix_of_its_patches(rng, p):
    a = jnp.asarray(rng.normal(size=(CLIENTS, 3, 3, 2, R)), jnp.float32)
    b = jnp.asarray(rng.normal(size=(CLIENTS, R, D)), jnp.float32)
    want = np.einsum("c,chwir,cro->hwio", P, np.asarray(a, np.float64), np.asarray(b, np.float64))
    close(summed(stack(as_matrices(a, b), p)).reshape(3, 3, 2, D), want)


def test_the_norm_of_a_product_is_found_without_the_product(clients):
    want = np.linalg.norm(np.asarray(clients.product, np.float64), axis=(1, 2))
    np.testing.assert_allclose(frobenius(clients), want, rtol=1e-5)


def test_the_norm_of_a_product_is_found_where_its_square_has_no_float32(clients):
    far = clients._replace(
        a=clients.a * jnp.float32(1e14), b=clients.b * jnp.float32([1e14, 1e-30, 0.0])[:, None, None]
    )
    want = np.linalg.norm(np.asarray(far.a, np.float64) @ np.asarray(far.b, np.float64), axis=(1, 2))
    np.testing.assert_allclose(frobenius(far), want, rtol=1e-5)


def test_clients_that_learned_equally_much_weigh_alike_and_others_by_how_much(clients):
    everyone = jnp.ones(CLIENTS)
    equal = clients._replace(a=clients.a / frobenius(clients)[:, None, None])
    np.testing.assert_allclose(by_norm(equal, everyone), 1 / 3, rtol=1e-5)
    doubled = equal._replace(b=equal.b * jnp.float32([2.0, 1.0, 1.0])[:, None, None])
    np.testing.assert_allclose(by_norm(doubled, everyone), [0.5, 0.25, 0.25], rtol=1e-5)
    np.testing.assert_allclose(by_norm(doubled, jnp.float32([0.0, 1.0, 1.0])), [0.0, 0.5, 0.5], rtol=1e-5)


def test_nobody_having_learned_anything_is_an_equal_mean_and_nobody_at_all_is_zero(clients):
    fresh = clients._replace(b=jnp.zeros_like(clients.b))
    np.testing.assert_array_equal(by_norm(fresh, jnp.float32([1.0, 0.0, 1.0])), [0.5, 0.0, 0.5])
    np.testing.assert_array_equal(by_norm(clients, jnp.zeros(CLIENTS)), 0.0)


def test_truncation_keeps_the_first_ranks_and_to_the_full_rank_is_the_identity(clients):
    one = jax.tree.map(lambda x: x[0], clients)
    for got, want in zip(truncate(one, R), one, strict=True):
        np.testing.assert_array_equal(got, want)
    got = truncate(one, jnp.int32(1))
    np.testing.assert_allclose(got.product, np.outer(one.a[:, 0], one.b[0]), rtol=1e-6)
