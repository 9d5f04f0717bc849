"""`powersgd` and `evofed`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.codecs.count_sketch import count_sketch
from fedjax8.codecs.evofed import evofed
from fedjax8.codecs.powersgd import powersgd
from fedjax8.errors import UserError

KEY = jax.random.key(0)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sends(codec, tree, times=1):
    """Decoded trees of the same tree sent several times."""
    state, decoded = codec.init(tree), []
    for _ in range(times):
        message, after = codec.encode(KEY, state, tree)
        decoded.append(codec.decode(state, message))
        state = after
    return decoded


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_a_matrix_of_low_rank_arrives_in_one_message(scale):
    matrix = normal(0, 20, 2) @ normal(1, 2, 16) * np.float32(scale)
    (got,) = sends(powersgd(2), {"kernel": jnp.asarray(matrix)})
    # a product of two terms and a QR of two columns, a few roundings of values below 8 each
    np.testing.assert_allclose(got["kernel"], matrix, atol=1e-5 * scale)


def test_what_is_decoded_is_the_projection_on_the_columns_of_p():
    matrix = normal(2, 20, 16)
    codec = powersgd(2)
    message, _ = codec.encode(KEY, codec.init({"kernel": matrix}), {"kernel": jnp.asarray(matrix)})
    p = np.asarray(message["kernel"].p, np.float64)
    np.testing.assert_allclose(p.T @ p, np.eye(2), atol=1e-6)  # sums of 20 products of values below 1
    (got,) = sends(codec, {"kernel": jnp.asarray(matrix)})
    np.testing.assert_allclose(got["kernel"], p @ (p.T @ matrix), atol=1e-5)  # sums of 20 products of values below 4
    assert np.linalg.norm(matrix - np.asarray(got["kernel"])) <= np.linalg.norm(matrix)


def test_the_warm_start_finds_the_best_approximation_of_a_matrix_that_stands_still():
    left, _ = np.linalg.qr(normal(3, 20, 16))
    right, _ = np.linalg.qr(normal(4, 16, 16))
    matrix = (left * 0.5 ** np.arange(16)) @ right.T
    best = (left[:, :2] * [1, 0.5]) @ right[:, :2].T
    decoded = sends(powersgd(2), {"kernel": jnp.asarray(matrix, jnp.float32)}, times=12)
    errors = [np.linalg.norm(np.asarray(tree["kernel"]) - best) for tree in decoded]
    # each message is a step of the power method, which shrinks the error by (s_3 / s_2)**2 = 1/4
    assert errors[-1] < 1e-5 < 0.05 < errors[0]


def test_sizes_are_those_of_two_thin_matrices_and_what_does_not_pay_stays_as_it_is():
    tree = {"conv": jnp.asarray(normal(5, 3, 3, 4, 12)), "dense": jnp.asarray(normal(6, 7, 3)), "bias": jnp.ones(50)}
    codec = powersgd(2)
    message, _ = codec.encode(KEY, codec.init(tree), tree)
    assert trees.num_bytes(message) == 4 * (2 * (36 + 12) + 21 + 50)
    assert set(codec.init(tree)) == {"conv"}
    (got,) = sends(codec, tree)
    np.testing.assert_array_equal(got["dense"], tree["dense"])
    assert got["conv"].shape == (3, 3, 4, 12)


def test_a_kernel_of_a_convolution_is_the_matrix_of_its_outputs_against_all_else():
    kernel = np.einsum("i,j->ij", normal(7, 36), normal(8, 12)).reshape(3, 3, 4, 12)
    (got,) = sends(powersgd(1), {"conv": jnp.asarray(kernel)})
    np.testing.assert_allclose(got["conv"], kernel, atol=1e-5)


def test_a_zero_matrix_arrives_and_does_not_spoil_the_next():
    codec, matrix = powersgd(1), jnp.asarray(np.outer(normal(9, 20), normal(10, 16)))
    zero = {"kernel": jnp.zeros((20, 16))}
    message, state = codec.encode(KEY, codec.init(zero), zero)
    np.testing.assert_array_equal(codec.decode((), message)["kernel"], 0)
    message, _ = codec.encode(KEY, state, {"kernel": matrix})
    np.testing.assert_allclose(codec.decode(state, message)["kernel"], matrix, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 0}, "rank must be at least 1; got 0"), ({"min_rate": 0.9}, "min_rate must be at least 1.*got 0.9")],
)
def test_impossible_ranks_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        powersgd(**settings)


SIGMA, MEMBERS = 0.3, 6


def population(parts, size, seed=0, number=0):
    """z `[P, K, size]` of the n-th shared population, the second half the negatives of the first."""
    key = jax.random.fold_in(jax.random.key(seed), number)
    half = [jax.random.normal(jax.random.fold_in(key, i), (parts, size)) for i in range(MEMBERS // 2)]
    return np.concatenate([half, np.negative(half)]).astype(np.float64)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("fitness", ["distance", "squared"])
def test_fitness_is_how_near_each_member_comes_and_the_receiver_takes_the_step(fitness, parts):
    x = normal(11, 20)
    size = -(-20 // parts)
    z = population(parts, size)
    padded = np.pad(x, (0, parts * size - 20)).reshape(parts, size)
    distances = np.sum((SIGMA * z - padded) ** 2, axis=2).T
    expected = -(distances if fitness == "squared" else np.sqrt(distances))
    pairs = expected.reshape(parts, 2, MEMBERS // 2)
    expected = (pairs - pairs.mean(axis=1, keepdims=True)).reshape(parts, MEMBERS)  # less what a pair has in common
    codec = evofed(MEMBERS, SIGMA, parts=parts, fitness=fitness, shaping="none", rate=0.7)
    tree = {"u": jnp.asarray(x)}
    message, _ = codec.encode(KEY, codec.init(tree), tree)
    np.testing.assert_allclose(message.values, expected, atol=4e-5)  # sums of 20 squares below 16
    step = 0.7 / (MEMBERS * SIGMA) * np.einsum("kj,jks->ks", expected, z).reshape(-1)[:20]
    np.testing.assert_allclose(codec.decode(codec.init(tree), message)["u"], step, atol=1e-4)


def test_the_mean_over_populations_of_the_plain_step_is_twice_rate_times_the_update():
    draws, x = 20_000, normal(12, 5)
    codec = evofed(MEMBERS, SIGMA, fitness="squared", shaping="none", rate=1.0, population="own")
    tree = {"u": jnp.asarray(x)}
    keys = jax.random.split(KEY, draws)
    got = np.asarray(jax.jit(jax.vmap(lambda k: codec.decode((), codec.encode(k, (), tree)[0])["u"]))(keys), np.float64)
    # 5 standard errors, for 5 values
    assert np.all(np.abs(got.mean(axis=0) - 2 * x) <= 5 * got.std(axis=0) / np.sqrt(draws))


@pytest.mark.parametrize("shaping", ["ranks", "zscore"])
def test_shaped_fitness_is_centered_ranks_or_z_scores(shaping):
    x = {"u": jnp.asarray(normal(13, 10))}
    values = -np.linalg.norm(SIGMA * population(1, 10)[:, 0] - np.asarray(x["u"], np.float64), axis=1)[None]
    values -= values.mean()
    codec = evofed(MEMBERS, SIGMA, shaping=shaping)
    shaped = np.asarray(codec.encode(KEY, codec.init(x), x)[0].values)
    expected = {"ranks": np.argsort(np.argsort(values)) / 5 - 0.5, "zscore": values / (values.std() + 1e-5)}
    np.testing.assert_allclose(shaped, expected[shaping], atol=1e-5)


def test_sender_and_receiver_stay_together_on_fitness_alone():
    codec = evofed(MEMBERS, SIGMA)
    tree = {"u": jnp.asarray(normal(14, 10))}
    sender = receiver = codec.init(tree)
    at_sender, at_receiver, steps = np.zeros(10, np.float32), np.zeros(10, np.float32), []
    for number in range(3):
        assert int(sender) == number
        message, after = codec.encode(jax.random.key(number), sender, tree)
        assert message.seed is None
        at_sender = at_sender + np.asarray(codec.decode(sender, message)["u"])
        copied = jax.tree.map(lambda x: jnp.asarray(np.asarray(x).copy()), message)
        steps.append(np.asarray(codec.decode(receiver, copied)["u"]))
        at_receiver = at_receiver + steps[-1]
        sender, receiver = after, receiver + 1
    np.testing.assert_array_equal(at_sender, at_receiver)
    assert not np.array_equal(steps[0], steps[1])  # the population is another one each time


def test_the_size_of_a_message_does_not_depend_on_the_models():
    for size in (30, 60):
        for parts in (1, 4):
            tree = {"u": jax.ShapeDtypeStruct((size,), jnp.float32)}
            shared, own = (evofed(MEMBERS, parts=parts, population=p) for p in ("shared", "own"))
            sizes = [
                trees.num_bytes(jax.eval_shape(lambda t, c=c: c.encode(KEY, c.init(t), t)[0], tree))
                for c in (shared, own)
            ]
            assert sizes == [4 * MEMBERS * parts, 4 * MEMBERS * parts + 8]


def test_only_the_plain_step_with_own_populations_is_called_unbiased():
    plain = {"fitness": "squared", "shaping": "none", "rate": 0.5}
    assert evofed(**plain, population="own").unbiased
    assert not evofed(**plain).unbiased
    assert not evofed(**plain | {"rate": 0.4}, population="own").unbiased
    assert not evofed(population="own").unbiased


@pytest.mark.parametrize("codec", [evofed(MEMBERS, SIGMA, parts=2), powersgd(2)])
def test_clients_of_a_batch_get_what_they_get_alone_up_to_the_order_of_sums(codec):
    updates = jnp.asarray(normal(15, 3, 20, 16))
    state = codec.init({"kernel": updates[0]})
    there_and_back = lambda x: codec.decode(state, codec.encode(KEY, state, {"kernel": x})[0])["kernel"]
    together = jax.vmap(there_and_back)(updates)
    for got, x in zip(together, updates, strict=True):
        np.testing.assert_allclose(got, there_and_back(x), atol=2e-5)  # sums of 320 products of values below 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 7}, "members must be even and at least 2; got 7"),
        ({"parts": 0}, "parts must be at least 1; got 0"),
        ({"sigma": 0.0}, r"sigma must be above 0; got 0.0"),
        ({"fitness": "cosine"}, "fitness must be one of distance, squared; got 'cosine'"),
        ({"shaping": "rank"}, "shaping must be one of zscore, ranks, none; got 'rank'"),
        ({"population": "one"}, "population must be one of shared, own; got 'one'"),
    ],
)
def test_impossible_populations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        evofed(**settings)


def test_messages_of_fixed_size_are_refused_where_the_tree_is_smaller():
    for codec, count in ((evofed(8), 8), (evofed(8, population="own"), 10), (evofed(4, parts=3), 12)):
        codec.init({"u": jnp.zeros(count + 1), "n": jnp.arange(3)})
        with pytest.raises(UserError, match=rf"evofed: .* is no smaller than the {count} values.*fewer members"):
            codec.init({"u": jnp.zeros(count)})
    count_sketch(3, 4).init({"u": jnp.zeros(13)})
    with pytest.raises(UserError, match="a table of rows=3 times columns=4 is no smaller than the 12 values"):
        count_sketch(3, 4).init({"u": jnp.zeros(12)})


def test_no_rank_is_above_a_side_of_a_matrix_that_is_sent_as_a_product():
    """At the least rate, r (n + m) <= n m: below either side."""
    for rank in (1, 2, 3, 7, 50):
        tree = {
            "a": jnp.asarray(normal(20, 9, 4)),
            "b": jnp.asarray(normal(21, 200, 1)),
            "c": jnp.asarray(normal(22, 8, 8)),
        }
        codec = powersgd(rank, min_rate=1)
        message, _ = jax.eval_shape(lambda t, c=codec: c.encode(KEY, c.init(t), t), tree)
        assert trees.num_bytes(message) <= trees.num_bytes(tree)
        assert all(message[n].p.shape == (tree[n].shape[0], rank) for n in codec.init(tree))
        assert trees.shapes(jax.eval_shape(codec.decode, (), message)) == trees.shapes(tree)


@pytest.mark.parametrize("fitness", ["distance", "squared"])
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e30])
def test_members_are_told_apart_whatever_the_size_of_the_update(scale, fitness):
    """Against float64: half the difference of a pair's fitness, without the difference of two numbers alike."""
    x = np.float32(scale) * normal(11, 20)
    codec, z = evofed(MEMBERS, SIGMA, fitness=fitness, shaping="none"), population(1, 20)[:, 0]
    message, _ = codec.encode(KEY, codec.init({"u": x}), {"u": jnp.asarray(x)})
    along, x = z @ x.astype(np.float64), x.astype(np.float64)
    ends = [np.sqrt(np.sum((SIGMA * z) ** 2, axis=1) + x @ x + sign * 2 * SIGMA * along) for sign in (1, -1)]
    expected = 2 * SIGMA * along / (ends[0] + ends[1] if fitness == "distance" else 1)
    np.testing.assert_allclose(message.values[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
