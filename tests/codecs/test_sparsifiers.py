"""`topk`, `randomk` and `count_sketch`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.codecs.chain import chain
from fedjax8.codecs.count_sketch import count_sketch
from fedjax8.codecs.fp8 import fp8
from fedjax8.codecs.randomk import randomk
from fedjax8.codecs.topk import topk

KEY = jax.random.key(0)
D = 130


def update(seed=0):
    """130 values in two tensors, of which 100 and 30."""
    rng = np.random.default_rng(seed)
    leaf = lambda *shape: jnp.asarray(rng.standard_normal(shape).astype(np.float32))
    return {"update": {"a": leaf(20, 5), "b": leaf(30)}}


def vector(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def send(codec, tree, key=KEY):
    message, _ = codec.encode(key, codec.init(tree), tree)
    return message, codec.decode(codec.init(tree), message)


def test_topk_keeps_the_values_of_largest_magnitude():
    x = vector(update())
    expected = np.zeros(D, np.float32)
    at = np.argsort(-np.abs(x), kind="stable")[:13]
    expected[at] = x[at]
    message, decoded = send(topk(0.1), update())
    np.testing.assert_array_equal(vector(decoded), expected)
    assert trees.num_bytes(message) == 13 * 4 + 13  # ceil(log2 130) = 8 bits a position
    # the contraction that error feedback lives on
    assert np.sum((x - expected) ** 2) <= (1 - 13 / D) * np.sum(x**2)


def test_topk_of_each_tensor_takes_its_share_of_each():
    message, decoded = send(topk(0.1, scope="tensor"), update())
    assert [np.count_nonzero(x) for x in jax.tree.leaves(decoded)] == [10, 3]
    assert trees.num_bytes(message) == 13 * 4 + 9 + 2  # 10 positions of 7 bits, 3 of 5


def test_topk_of_everything_loses_nothing():
    for codec in (topk(1.0), topk(count=10**9), topk(1.0, scope="tensor")):
        np.testing.assert_array_equal(vector(send(codec, update())[1]), vector(update()))


def test_of_equal_magnitudes_topk_sends_the_first():
    tree = {"u": jnp.array([1.0, -2.0, 2.0, 2.0, -2.0])}
    np.testing.assert_array_equal(send(topk(count=2), tree)[1]["u"], [0, -2, 2, 0, 0])


def test_positions_beyond_16_bits_arrive():
    x = jnp.zeros(70_001).at[jnp.array([3, 65_536, 70_000])].set(jnp.array([1.0, 2.0, 3.0]))
    message, decoded = send(topk(count=3), {"u": x})
    np.testing.assert_array_equal(decoded["u"], x)
    assert message.positions[0].size == 7  # 3 * 17 bits


@pytest.mark.parametrize("sparsifier", [topk(0.1), randomk(0.1)])
def test_a_chain_sends_the_kept_values_in_eight_bits(sparsifier):
    alone, kept = send(sparsifier, update(), jax.random.fold_in(KEY, 0))  # the key that a chain gives its first part
    codec = chain((sparsifier, fp8("e4m3fn", "nearest", clip="max", min_ndim=1)))
    message, decoded = send(codec, update())
    assert trees.num_bytes(message) == trees.num_bytes(alone) - 13 * 3 + 4  # a byte for each value, and their clip
    np.testing.assert_array_equal(vector(decoded) == 0, vector(kept) == 0)
    # half of the widest step of the grid, whose largest binade is 2**-3 of its lower end
    np.testing.assert_allclose(vector(decoded), vector(kept), atol=2.0**-4 * np.abs(vector(kept)).max())


def test_randomk_sends_values_and_a_seed_and_the_receiver_draws_the_same_positions():
    x = vector(update())
    message, decoded = send(randomk(0.1, scaled=False), update())
    assert trees.num_bytes(message) == 13 * 4 + 8
    got = vector(decoded)
    assert np.count_nonzero(got) == 13
    np.testing.assert_array_equal(got[got != 0], x[got != 0])
    scaled = vector(send(randomk(0.1), update())[1])
    np.testing.assert_allclose(scaled, got * np.float32(10), rtol=2.0**-23)


def test_randomk_draws_every_position_alike_and_has_the_variance_it_states():
    draws, share = 4000, 0.1
    codec, tree = randomk(share), {"u": jnp.asarray(vector(update()))}
    keys = jax.random.split(KEY, draws)
    got = np.asarray(jax.jit(jax.vmap(lambda k: codec.decode((), codec.encode(k, (), tree)[0])["u"]))(keys), np.float64)
    drawn = np.count_nonzero(got, axis=0)
    # 5 standard deviations of a binomial count, for 130 of them
    assert np.all(np.abs(drawn - share * draws) <= 5 * np.sqrt(share * (1 - share) * draws))
    x = vector(update()).astype(np.float64)
    error = np.sum((got - x) ** 2, axis=1)
    factor = error / np.sum(x**2)
    assert abs(factor.mean() - (1 / share - 1)) <= 5 * factor.std() / np.sqrt(draws)


def test_pairs_of_positions_are_drawn_as_often_as_independence_without_replacement_says():
    draws, k = 4000, 13
    codec, tree = randomk(count=k, scaled=False), {"u": jnp.ones(D)}
    keys = jax.random.split(jax.random.key(9), draws)
    drawn = np.asarray(jax.jit(jax.vmap(lambda s: codec.decode((), codec.encode(s, (), tree)[0])["u"]))(keys))
    together = (drawn.T @ drawn)[np.triu_indices(D, 1)]
    p = k * (k - 1) / (D * (D - 1))
    # 6 standard deviations, for 8385 pairs
    assert np.all(np.abs(together - p * draws) <= 6 * np.sqrt(p * draws))


def test_a_count_sketch_is_linear_and_its_size_is_the_tables():
    codec = count_sketch(3, 32)
    x, y = update(), update(1)
    tables = [send(codec, tree)[0].table for tree in (x, y, trees.add(x, y))]
    # sums of at most 130 values of magnitude below 4, rounded in another order
    np.testing.assert_allclose(tables[0] + tables[1], tables[2], atol=130 * 4 * 2.0**-23)
    for tree in (x, {"u": jnp.ones(97)}):
        assert trees.num_bytes(send(codec, tree)[0]) == 4 * 3 * 32


def test_a_count_sketch_recovers_few_large_values():
    x = np.zeros(4 * D, np.float32)
    x[[4, 77, 129]] = [5.0, -3.0, 2.0]
    tree = {"u": jnp.asarray(x), "n": jnp.arange(3)}
    for keep in (3, None):
        decoded = send(count_sketch(7, 64, keep=keep), tree)[1]
        if keep:
            np.testing.assert_array_equal(decoded["u"], x)
        else:  # a median of seven rows: wrong only where four of them have a collision
            np.testing.assert_array_equal(decoded["u"][jnp.array([4, 77, 129])], x[[4, 77, 129]])
        np.testing.assert_array_equal(decoded["n"], np.arange(3))


def test_a_count_sketch_keeps_as_many_values_as_it_is_told():
    whole = vector(send(count_sketch(3, 32), update())[1])
    kept = vector(send(count_sketch(3, 32, keep=5), update())[1])
    at = np.sort(np.argsort(-np.abs(whole), kind="stable")[:5])
    np.testing.assert_array_equal(np.flatnonzero(kept), at)
    np.testing.assert_array_equal(kept[at], whole[at])


@pytest.mark.parametrize("factory", [topk, randomk])
def test_impossible_shares_are_refused(factory):
    with pytest.raises(ValueError, match=r"share must be above 0 and at most 1; got 1.5"):
        factory(1.5)
    with pytest.raises(ValueError, match="count must be at least 1, or None to go by share; got 0"):
        factory(count=0)
    with pytest.raises(ValueError, match="scope must be one of model, tensor; got 'leaf'"):
        factory(scope="leaf")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rows": 33}, "rows must be 1 to 32"), ({"columns": 0}, "columns must be at"), ({"keep": 0}, "keep must be at")],
)
def test_impossible_sketches_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        count_sketch(**settings)
