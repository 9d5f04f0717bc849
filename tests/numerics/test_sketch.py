"""The count sketch: its defining sum and its estimates against NumPy in float64, its accuracy over many seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.numerics import hash_bits
from fedjax8.numerics import sketch as module
from fedjax8.numerics.sketch import second_moment, sketch, unsketch

ROWS, COLUMNS = 5, 250
FLOAT32 = 2.0**-20  # relative to the sum of |x| in a bucket: some hundred additions of 2**-24 each


def hashes(rows, columns, seed, count, offset=0):
    """Buckets and signs `[rows, count]` by the formula of the docstring, in int64."""
    signs, shifts = (np.asarray(x) if i else x for i, x in enumerate(module._draw(seed, rows, columns)))
    index = np.arange(count) + offset
    block, position = index // columns, index % columns
    rotation = sum(shifts[level][(block >> (4 * level)) & 15].astype(np.int64) for level in range(8)).T
    words = np.asarray(hash_bits(signs, count, offset))
    return (position + rotation) % columns, 1 - 2.0 * ((words >> np.arange(rows, dtype=np.uint32)[:, None]) & 1)


def by_hand(x, rows, columns, seed, offset=0):
    """The table in float64, and the estimates of every element."""
    buckets, signs = hashes(rows, columns, seed, x.size, offset)
    table = np.zeros((rows, columns))
    for i in range(rows):
        np.add.at(table[i], buckets[i], signs[i] * x)
    return table, np.median(signs * table[np.arange(rows)[:, None], buckets], axis=0)


@pytest.fixture
def small_segments(monkeypatch):
    """Segments of 16 blocks, so that a few hundred elements need several. No other test may have their sizes."""
    monkeypatch.setattr(module, "_SEGMENT", 1)


CASES = [(3, 250, 0, 6000), (2, 250, 12345, 6000), (4, 3, 5, 200), (1, 7, 0, 1), (2, 1, 3, 40), (3, 40000, 99999, 900)]


@pytest.mark.parametrize(("rows", "columns", "offset", "count"), CASES)
def test_table_and_estimates_are_those_of_the_definition(rng, rows, columns, offset, count):
    x = rng.normal(size=count).astype(np.float32)
    table, estimates = by_hand(x, rows, columns, 3, offset)
    got = sketch(x, rows, columns, 3, offset=offset)
    assert (got.shape, got.dtype) == ((rows, columns), np.float32)
    np.testing.assert_allclose(got, table, atol=FLOAT32 * np.abs(x).sum())
    back = unsketch(got, x, 3, offset=offset)
    np.testing.assert_allclose(back, estimates, atol=FLOAT32 * np.abs(x).sum())
    moments = np.median(np.sum(table**2, axis=1))
    assert float(second_moment(got)) == pytest.approx(moments, rel=1e-5)


@pytest.mark.parametrize("offset", [0, 1777])
def test_a_tree_of_several_segments_has_the_same_table_and_estimates(rng, small_segments, offset):
    x = rng.normal(size=1000).astype(np.float32)
    table, estimates = by_hand(x, 2, 20, 9, offset)
    got = sketch(x, 2, 20, 9, offset=offset)
    np.testing.assert_allclose(got, table, atol=FLOAT32 * np.abs(x).sum())
    np.testing.assert_allclose(unsketch(got, x, 9, offset=offset), estimates, atol=FLOAT32 * np.abs(x).sum())


def tree_of(rng):
    """Leaves shorter and longer than a block, a scalar and an empty one; the order is that of the names."""
    shapes = {"a": (7, 11), "b": (), "c": (0, 4), "d": (900,), "e": (3,)}
    return {name: jnp.asarray(rng.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()}


def test_a_tree_leaf_by_leaf_at_its_offsets_is_the_concatenated_vector(rng):
    tree = tree_of(rng)
    flat = np.concatenate([np.ravel(x) for x in tree.values()])
    ends = np.cumsum([0] + [x.size for x in tree.values()])
    parts = [sketch(x, 2, 50, 1, offset=int(start)) for x, start in zip(tree.values(), ends, strict=False)]
    whole = np.asarray(sketch(tree, 2, 50, 1))
    np.testing.assert_array_equal(whole, sketch(flat, 2, 50, 1))
    np.testing.assert_allclose(sum(parts), whole, atol=FLOAT32 * np.abs(flat).sum())
    back = unsketch(whole, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree), 1)
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, tree)
    flat_back = np.asarray(unsketch(whole, flat, 1))
    np.testing.assert_array_equal(np.concatenate([np.ravel(x) for x in back.values()]), flat_back)


def test_the_sketch_is_linear_and_means_of_tables_are_tables_of_means(rng):
    u, v = rng.normal(size=(2, 3000)).astype(np.float32)
    make = jax.jit(lambda x: sketch(x, ROWS, COLUMNS, 4))
    np.testing.assert_allclose(make(2 * u - 3 * v), 2 * make(u) - 3 * make(v), atol=1e-4)  # entries of size 10
    np.testing.assert_allclose(make((u + v) / 2), (make(u) + make(v)) / 2, atol=1e-5)
    assert not np.any(make(0 * u))
    assert not np.any(sketch({}, ROWS, COLUMNS, 4))


def test_a_single_element_is_found_exactly(rng):
    x = np.zeros(5000, np.float32)
    x[4321] = -2.75
    table = np.asarray(sketch(x, ROWS, COLUMNS, 8))
    assert (np.count_nonzero(table, axis=1) == 1).all()
    assert (np.abs(table).max(axis=1) == 2.75).all()
    assert float(second_moment(table)) == 2.75**2
    back = np.asarray(unsketch(table, x, 8))
    assert back[4321] == -2.75
    # In three of five rows another element must share the bucket: 10 / 250^3 per element.
    assert np.count_nonzero(back) <= 1 + 5


def test_equal_seeds_hash_equally_under_vmap_and_as_arrays_and_other_seeds_differently(rng):
    x = rng.normal(size=(2, 600)).astype(np.float32)
    make = lambda u, seed: sketch(u, 3, 20, seed)
    both = jax.vmap(lambda u: make(u, 5))(x)
    np.testing.assert_allclose(both[1], make(x[1], 5), atol=1e-5)
    np.testing.assert_allclose(jax.jit(make)(x[1], jnp.uint32(5)), make(x[1], 5), atol=1e-5)
    assert np.abs(np.asarray(make(x[1], 6) - make(x[1], 5))).max() > 1


DIMENSION = 20_000
VECTORS = {
    "normal": lambda rng: rng.normal(size=DIMENSION),
    "constant": lambda rng: np.ones(DIMENSION),
    "ramp": lambda rng: np.arange(DIMENSION) / DIMENSION,
    "period of a block": lambda rng: np.tile(rng.normal(size=COLUMNS), DIMENSION // COLUMNS),
    "one position of every block": lambda rng: np.tile(np.eye(COLUMNS)[17], DIMENSION // COLUMNS),
    "every second block": lambda rng: np.repeat(np.arange(DIMENSION // COLUMNS) % 2, COLUMNS),
    "every sixteenth block": lambda rng: np.repeat(np.arange(DIMENSION // COLUMNS) % 16 == 3, COLUMNS),
    "sparse": lambda rng: rng.normal(size=DIMENSION) * (rng.random(DIMENSION) < 0.005),
}


@pytest.fixture(scope="module")
def row_moments():
    """Sums of squares of all rows `[seeds, rows]` for 1000 seeds, relative to the truth; compiled once."""

    @jax.jit
    def all_seeds(x):
        def one(seed):
            return jnp.sum(jnp.square(sketch(x, ROWS, COLUMNS, seed)), axis=1)

        return jax.lax.map(one, jnp.arange(1000, dtype=jnp.uint32))

    return lambda x: np.asarray(all_seeds(np.float32(x))) / np.sum(np.float64(x) ** 2)


@pytest.mark.parametrize("name", VECTORS)
def test_rows_are_unbiased_and_no_vector_exceeds_the_bound_on_their_variance(rng, row_moments, name):
    x = VECTORS[name](rng)
    moments = row_moments(x)
    # 5000 values of standard deviation 0.09: one standard error is 0.0013, and 0.01 eight of them.
    assert moments.mean() == pytest.approx(1.0, abs=0.01)
    share = np.sum(np.float64(x) ** 4) / np.sum(np.float64(x) ** 2) ** 2  # an element does not collide with itself
    bound = np.sqrt(2 / COLUMNS * (1 - share))
    # Heavy tails (whole blocks that meet) widen the estimate of a deviation: 15% above, where 5% is typical.
    assert moments.std() < 1.15 * bound
    if name in ("normal", "sparse"):
        assert moments.std() == pytest.approx(0.089, abs=0.006)


def test_rows_of_one_table_are_independent(rng, row_moments):
    correlation = np.corrcoef(row_moments(VECTORS["normal"](rng)).T)
    # 1000 seeds, ten pairs: 4.5 standard errors of 1 / sqrt(1000).
    assert np.abs(correlation[~np.eye(ROWS, dtype=bool)]).max() < 4.5 / np.sqrt(1000)


def test_two_indices_share_a_bucket_as_often_as_chance_has_it_and_never_within_a_block():
    """All pairs of 2000 indices with one fixed index, 40 seeds of 32 rows; 5 standard errors of the share."""
    columns, count, met = 50, 2000, np.zeros(2000)
    for seed in range(40):
        buckets, _ = hashes(32, columns, seed, count)
        met += (buckets == buckets[:, 777][:, None]).sum(axis=0)
    own = np.arange(count) // columns == 777 // columns
    assert met[own].sum() == met[777] == 40 * 32
    trials = 40 * 32
    sigmas = (met[~own] / trials - 1 / columns) / np.sqrt(1 / columns * (1 - 1 / columns) / trials)
    assert abs(sigmas.mean()) < 5 / np.sqrt(columns)  # elements of two blocks meet together: 39 * 50 independent or so
    assert np.abs(sigmas).max() < 6


def test_estimates_of_elements_are_within_the_noise_that_the_rest_of_the_vector_makes(rng):
    x = rng.normal(size=DIMENSION).astype(np.float32)
    x[[3, 5000, 19_999]] = 400, -500, 600
    back = np.asarray(unsketch(sketch(x, ROWS, COLUMNS, 2), x, 2))
    rest = np.sqrt(np.sum(x**2) - 400**2 - 500**2 - 600**2) / np.sqrt(COLUMNS)  # 9: of the median less
    np.testing.assert_allclose(back[[3, 5000, 19_999]], x[[3, 5000, 19_999]], atol=4 * rest)
    assert (np.abs(back) > 200).sum() < 3 + 40  # 3 of 5 rows hit by one of three: 20000 * 10 * (3 / 250)^3 = 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 0}, "rows <= 32.*got 0, 4, 0"),
        ({"rows": 33}, "rows <= 32.*got 33"),
        ({"columns": 0}, "columns >= 1.*got 3, 0"),
        ({"offset": -1}, "offset >= 0.*-1"),
        ({"seed": -1}, r"below 2\*\*32; got -1"),
        ({"seed": 1 << 32}, r"below 2\*\*32; got 4294967296"),
    ],
)
def test_bad_settings_are_named_with_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        sketch(jnp.ones(3), **({"rows": 3, "columns": 4, "seed": 0} | settings))


def test_indices_beyond_the_hash_are_refused():
    with pytest.raises(UserError, match="got 3 at offset 4294967294"):
        sketch(jnp.ones(3), 3, 4, 0, offset=(1 << 32) - 2)
