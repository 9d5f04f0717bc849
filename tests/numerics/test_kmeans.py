"""k-means of scalars against float64 and brute force."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.numerics import kmeans as km

C = 8


def normal(count, seed=0):
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def nearest(x, codebook):
    """Brute force in float64; ties to the lower value."""
    distance = np.abs(x.astype(np.float64)[:, None] - codebook.astype(np.float64))
    return codebook[np.argmin(distance, axis=1)]


def exactly_nearest(x, codebook):
    """Brute force in fractions, for numbers of so different size that float64 rounds their differences."""
    values = [Fraction(float(z)) for z in codebook]
    return np.float32([float(min(values, key=lambda z, y=Fraction(float(y)): (abs(y - z), z))) for y in x])


@pytest.mark.parametrize("values", [[3.5], [0.1, 0.3], [-0.0, 1e-30, 7.0, 1e30], list(np.linspace(-1, 1, C))])
def test_as_many_distinct_values_as_clusters_are_kept_exactly_and_padded_by_the_largest(values):
    values = np.float32(values)
    x = np.random.default_rng(0).permutation(np.resize(values, 60))
    codebook = km.kmeans(jnp.asarray(x), C)
    np.testing.assert_array_equal(codebook, np.pad(values, (0, C - values.size), constant_values=values[-1]))
    np.testing.assert_array_equal(km.snap(jnp.asarray(x), codebook), x)


def test_at_the_end_each_centroid_is_the_mean_of_what_is_nearest_to_it():
    x = normal(60)
    codebook = np.asarray(km.kmeans(jnp.asarray(x), C))
    snapped = nearest(x, codebook)
    means = [x[snapped == z].astype(np.float64).mean() for z in codebook]
    # a rounding of the quotient and one of the sum, of values of magnitude up to 3
    np.testing.assert_allclose(codebook, means, atol=2 * 2.0**-23)
    np.testing.assert_allclose(snapped.astype(np.float64).mean(), x.astype(np.float64).mean(), atol=2 * 2.0**-23)
    assert np.all(np.diff(codebook) > 0)


@pytest.mark.parametrize(("clusters", "decibels"), [(8, 14.6), (16, 20.2), (32, 26.0)])
def test_a_normal_distribution_is_clustered_as_well_as_the_best_quantizer_does(clusters, decibels):
    assert abs(signal_to_noise(clusters) - decibels) < 0.06  # the figures are rounded to 0.1 dB


def test_sixty_four_clusters_of_a_normal_distribution_reach_31_decibels_and_a_half():
    assert signal_to_noise(64) >= 31.5


def signal_to_noise(clusters):
    x = normal(1_000_000)
    error = np.asarray(km.snap(x, km.kmeans(jnp.asarray(x), clusters)), np.float64) - x
    return 10 * np.log10(np.sum(np.square(x, dtype=np.float64)) / np.sum(np.square(error)))


def least_errors(x, clusters):
    """The squared error of the best codebook of 1, 2, ... clusters, by dynamic programming over the sorted values."""
    x = np.sort(x.astype(np.float64))
    sums, squares = (np.concatenate([[0.0], np.cumsum(y)]) for y in (x, x**2))
    i, j = np.arange(x.size)[:, None], np.arange(1, x.size + 1)[None]
    cost = squares[j] - squares[i] - (sums[j] - sums[i]) ** 2 / np.maximum(j - i, 1)
    cost[i >= j] = np.inf
    best, found, room = cost[0], [cost[0][-1]], np.empty_like(cost)
    for _ in range(clusters - 1):
        np.add(np.concatenate([[np.inf], best[:-1]])[:, None], cost, out=room)
        best = np.min(room, axis=0)
        found.append(best[-1])
    return found


def least_error(x, clusters):
    """The squared error of the best codebook."""
    return least_errors(x, clusters)[-1]


DISTRIBUTIONS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "uniform": lambda rng, n: rng.random(n),
    "student": lambda rng, n: rng.standard_t(2, n),
    "cauchy": lambda rng, n: rng.standard_cauchy(n),
    "lognormal": lambda rng, n: rng.lognormal(0, 2, n),
    "sparse": lambda rng, n: np.where(rng.random(n) < 0.1, rng.standard_normal(n), 1e-4 * rng.standard_normal(n)),
    "far apart": lambda rng, n: np.where(rng.random(n) < 0.5, 1000 + rng.standard_normal(n), -9 + 0.01 * rng.random(n)),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_error_is_near_the_least_there_is(distribution):
    """Within 1.05, of 1500 values; Lloyd's iterations from quantiles end at 1.95 for Cauchy's."""
    for seed in range(2):
        x = DISTRIBUTIONS[distribution](np.random.default_rng(seed), 1500).astype(np.float32)
        least = least_errors(x, 64)
        for clusters in (16, 64):
            codebook = np.asarray(km.kmeans(jnp.asarray(x), clusters))
            error = np.sum(np.square(nearest(x, codebook).astype(np.float64) - x))
            assert error <= 1.05 * least[clusters - 1], clusters


def test_of_few_values_the_codebook_is_the_best_there_is():
    """With no more of them than bins nothing is left to chance; Lloyd's method cannot make it worse."""
    x = np.random.default_rng(5).standard_cauchy(60).astype(np.float32)
    error = np.sum(np.square(nearest(x, np.asarray(km.kmeans(jnp.asarray(x), C))).astype(np.float64) - x))
    assert error <= (1 + 1e-4) * least_error(x, C)


def test_order_does_not_matter_and_scaling_by_two_scales_the_codebook():
    x = normal(60)
    codebook = np.asarray(km.kmeans(jnp.asarray(x), C))
    np.testing.assert_array_equal(km.kmeans(jnp.asarray(np.random.default_rng(1).permutation(x)), C), codebook)
    np.testing.assert_array_equal(km.kmeans(jnp.asarray(2 * x), C), 2 * codebook)


def test_values_at_the_ends_of_float32_are_clustered_as_their_multiples_are():
    x = normal(60)
    codebook = np.asarray(km.kmeans(jnp.asarray(x), C))
    for power in (-96, 125):  # 2**125 times 3 is the last power below overflow
        scaled = np.asarray(km.kmeans(jnp.asarray(np.ldexp(x, power)), C))
        np.testing.assert_array_equal(scaled, np.ldexp(codebook, power))


def test_the_mean_of_two_million_values_is_right_to_the_last_bit_but_one():
    x = np.float32(1000) + normal(2_000_000)
    exact = x.astype(np.float64).mean()
    assert abs(np.float64(km.kmeans(jnp.asarray(x), 1)[0]) - exact) <= np.spacing(np.float32(exact))
    # why pairs are kept: a float32 running sum misses the mean by thousands of such steps
    assert abs(np.cumsum(x)[-1] / 2_000_000 - exact) > 1000 * np.spacing(np.float32(exact))


def test_prefix_sums_agree_with_float64():
    x = np.sort(normal(1001)) * np.float32(1e3)
    high, low = (np.asarray(part, np.float64) for part in km._prefix_sums(jnp.asarray(x)))
    exact = np.concatenate([[0.0], np.cumsum(x, dtype=np.float64)])
    # 2**-45 of the largest sum on the way
    np.testing.assert_allclose(high + low, exact, atol=2.0**-45 * np.abs(exact).max())


def test_values_that_repeat_and_gaps_cost_no_clusters():
    rng = np.random.default_rng(2)
    clumps = [np.zeros(3000), 1e-3 * rng.standard_normal(500), 1 + 1e-3 * rng.standard_normal(500)]
    x = np.concatenate(clumps).astype(np.float32)
    codebook = np.asarray(km.kmeans(jnp.asarray(x), C))
    error = np.sum(np.square(nearest(x, codebook).astype(np.float64) - x))
    # with at least a cluster for the zeros and three for each clump, whose best quantizer of three values leaves 0.19
    assert np.unique(codebook).size == C
    assert error <= 0.25 * 1e-6 * 1000


def test_snapping_is_a_search_for_the_nearest_value():
    rng = np.random.default_rng(3)
    one = np.float32(1)
    beside = np.nextafter(one, np.float32(2))
    books = [
        np.sort(normal(C)),
        np.float32([1, beside, np.nextafter(beside, np.float32(2)), 3, 3, 3]),
        np.float32([-1e30, -1, 0, 0, 1e-30, 2, 4, 1e30]),
    ]
    for book in books:
        middles = (book[1:].astype(np.float64) + book[:-1]) / 2
        around = [np.float32(middles)]
        around += [np.nextafter(around[0], np.float32(sign * np.inf)) for sign in (-1, 1)]
        x = np.concatenate([*around, book, 3 * rng.standard_normal(100).astype(np.float32), np.float32([-9e30, 9e30])])
        x = x.astype(np.float32)
        snapped = np.asarray(km.snap(jnp.asarray(x), jnp.asarray(book)))
        np.testing.assert_array_equal(snapped, exactly_nearest(x, book))
        np.testing.assert_array_equal(km.snap(jnp.asarray(snapped), jnp.asarray(book)), snapped)
        assert np.all(np.diff(snapped[np.argsort(x)]) >= 0)


def test_a_tie_goes_to_the_lower_value_and_what_lies_outside_to_the_ends():
    book = jnp.array([-2.0, 0.0, 1.0])
    np.testing.assert_array_equal(km.assign(jnp.array([-1.0, 0.5, -50.0, 50.0]), book), [0, 1, 0, 2])


def test_rows_of_a_batch_are_clustered_as_they_are_alone():
    x = normal(180).reshape(3, 60)
    together = jax.vmap(lambda row: km.kmeans(row, C))(x)
    for row, codebook in zip(x, together, strict=True):
        np.testing.assert_array_equal(codebook, km.kmeans(jnp.asarray(row), C))


def test_nothing_to_cluster_is_refused():
    with pytest.raises(ValueError, match=r"clusters=0 of 3 values"):
        km.kmeans(jnp.zeros(3), 0)
    with pytest.raises(ValueError, match=r"clusters=2 of 0 values"):
        km.kmeans(jnp.zeros(0), 2)
