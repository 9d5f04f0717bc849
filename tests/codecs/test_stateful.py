"""`error_feedback`, `delta` and `skip`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.codecs import (
    adaptive,
    chain,
    codebook,
    count_sketch,
    delta,
    drive,
    eden,
    error_feedback,
    evofed,
    fp8,
    narrow,
    none,
    per_path,
    powersgd,
    randomk,
    rotated,
    sign,
    skip,
    terngrad,
    topk,
    uniform,
)
from fedjax8.codecs.sign import Signs
from fedjax8.errors import UserError

NEAREST = fp8(rounding="nearest", clip="max", min_ndim=0)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def update(seed=0):
    return {"update": {"a": normal(seed, 4, 5), "b": normal(seed + 100, 10)}, "count": jnp.arange(2)}


def run(codec, sequence):
    """(decoded trees, states from the first to the last) of a sender and its receiver, which share a compiled step."""
    state = codec.init(sequence[0])
    decoded, states = [], [state]

    @jax.jit
    def step(key, state, tree):
        message, after = codec.encode(key, state, tree)
        return codec.decode(state, message), after

    for number, tree in enumerate(sequence):
        got, state = step(jax.random.key(number), state, tree)
        decoded.append(got)
        states.append(state)
    return decoded, states


@pytest.mark.parametrize("codec", [topk(0.2), NEAREST, fp8(clip="max")], ids=["topk", "nearest", "stochastic"])
def test_with_error_feedback_nothing_is_lost_for_good(codec):
    sequence = [update(seed) for seed in range(6)]
    decoded, states = run(error_feedback(codec), sequence)
    for name, residual in states[-1].residual.items():
        sent = sum(np.asarray(trees.named_leaves(tree)[name], np.float64) for tree in decoded)
        wanted = sum(np.asarray(trees.named_leaves(tree)[name], np.float64) for tree in sequence)
        # a rounding of x + e and one of p - decoded in each of 6 steps, of values below 16
        np.testing.assert_allclose(sent + np.asarray(residual), wanted, atol=6 * 2 * 2.0**-20)
    assert max(np.abs(r).max() for r in states[-1].residual.values()) > 0.01


def test_a_residual_decays_before_it_is_added():
    x = {"u": jnp.array([4.0, 1.0])}
    decoded, states = run(error_feedback(topk(count=1), decay=0.5), [x, x, {"u": jnp.array([0.0, 0.0])}])
    np.testing.assert_array_equal([tree["u"] for tree in decoded], [[4, 0], [4, 0], [0, 0.75]])
    np.testing.assert_array_equal(states[2].residual["u"], [0, 1.5])
    np.testing.assert_array_equal(states[3].residual["u"], [0, 0])


def test_error_feedback_nests_the_state_of_its_codec_and_passes_integers():
    tree = update() | {"update": {"a": normal(0, 8, 5), "b": normal(100, 10)}}
    decoded, states = run(error_feedback(powersgd(1)), [tree, tree])
    assert set(states[-1].residual) == {"update/a", "update/b"}
    assert set(states[-1].inner) == {"update/a"}
    np.testing.assert_array_equal(decoded[1]["count"], np.arange(2))


REMEMBERED = {
    "none": none(),
    "fp8": fp8(),
    "topk": topk(0.2),
    "sign": sign(min_ndim=1),
    "sign without scale": sign("none", min_ndim=1),
    "codebook": codebook(4),
    "adaptive": adaptive(),
    "drive": drive(),
    "eden": eden(1, "min_error"),
    "powersgd": powersgd(1),
    "narrow": narrow(),
    # do not contract by themselves
    "rotated": rotated(1),
    "randomk": randomk(0.2),
    "uniform": uniform(1),
    "terngrad": terngrad(),
    "evofed": evofed(16),
    "chain": chain((topk(0.3), uniform(2))),
    "per_path": per_path({"*/a": uniform(1)}, none()),
    "skip": skip(sign(min_ndim=1), 0.5),
}


def sends_for_200_rounds(codec, tree):
    """(how far what was decoded so far is from what was to be sent, over ||x||, by round; the mean decoded)."""

    @jax.jit
    def all_rounds(state, tree):
        def one(carry, key):
            state, total = carry
            message, after = codec.encode(key, state, tree)
            total = trees.add(total, codec.decode(state, message))
            return (after, total), total

        return jax.lax.scan(one, (state, trees.zeros_like(tree)), jax.random.split(jax.random.key(3), 200))[1]

    totals = all_rounds(codec.init(tree), tree)
    flat = lambda t: np.concatenate([np.asarray(x, np.float64).reshape(len(x), -1) for x in jax.tree.leaves(t)], 1)
    totals, x = flat(totals), np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    behind = np.linalg.norm(totals - np.arange(1, 201)[:, None] * x, axis=1) / np.linalg.norm(x)
    return behind, totals[-1] / 200


@pytest.mark.parametrize("name", REMEMBERED)
def test_around_a_codec_that_contracts_a_constant_update_is_sent_in_the_end(name):
    """The residual stays, 200 rounds long, below what 1 - q = 1/30 allows, and so the mean sent tends to the update."""
    tree = {"u": {"a": normal(0, 8, 5), "b": normal(100, 3)}}
    behind, mean = sends_for_200_rounds(error_feedback(REMEMBERED[name]), tree)
    assert behind.max() < 30
    assert behind[100:].max() < 1.5 * behind[:100].max() + 1
    x = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    assert np.linalg.norm(mean - x) <= behind[-1] / 200 * np.linalg.norm(x) * 1.01 + 1e-6


@pytest.mark.parametrize("name", ["rotated", "randomk", "uniform", "chain", "topk"])
def test_a_reference_comes_to_a_tree_that_stands_still(name):
    """`delta`, which remembers too: after 200 messages nothing is left to send, to rounding."""
    tree = {"u": {"a": normal(0, 8, 5), "b": jnp.zeros(0)}}
    codec = delta(REMEMBERED[name])

    @jax.jit
    def last(state):
        step = lambda state, key: (codec.encode(key, state, tree)[1], None)
        return jax.lax.scan(step, state, jax.random.split(jax.random.key(3), 200))[0].reference

    error = np.linalg.norm(np.asarray(last(codec.init(tree))["u/a"]) - np.asarray(tree["u"]["a"]))
    assert error < 1e-3 * np.linalg.norm(tree["u"]["a"])


def test_the_factor_that_travels_is_that_of_least_error():
    tree = {"u": {"a": jnp.array([[3.0, -4.0, 1.0, 0.5]]), "b": jnp.array([0.25, 0.5])}}
    codec = error_feedback(sign("none"))
    message, state = codec.encode(jax.random.key(0), codec.init(tree), tree)
    np.testing.assert_allclose(message.factors, [8.5 / 4, 1.0])  # the mean magnitude; b is sent as it is
    np.testing.assert_allclose(codec.decode(codec.init(tree), message)["u"]["a"], 2.125 * np.sign([[3, -4, 1, 0.5]]))
    np.testing.assert_allclose(state.residual["u/a"], [[0.875, -1.875, -1.125, -1.625]])
    assert trees.num_bytes(message) == 1 + 4 * 2 + 2 * 4  # signs, b, factors
    plain, _ = error_feedback(sign()).encode(jax.random.key(0), error_feedback(sign()).init(tree), tree)
    assert isinstance(plain["u"]["a"], Signs)  # one that contracts is sent as it is


def test_what_neither_contracts_nor_does_so_scaled_is_refused_with_what_to_do():
    refused = (count_sketch(1, 4), delta(topk(0.1)), error_feedback(topk(0.1)), adaptive(max_bits=6))
    for outer in (error_feedback, delta):
        for inner in (*refused, per_path({"*": refused[0]}, none()), skip(refused[1]), chain([none(), refused[2]])):
            with pytest.raises(
                ValueError, match=rf"{outer.__name__} needs a codec that contracts.*such as topk or sign"
            ):
                outer(inner)


def test_combinators_say_whether_they_contract():
    assert chain([topk(0.1)]).contracts and chain([none(), sign()]).contracts and chain([none()]).contracts
    assert not chain([topk(0.1), uniform(1)]).contracts and chain([topk(0.1), uniform(1)]).aligned
    assert per_path({"*": topk()}, sign()).contracts
    assert not per_path({"*": topk()}, uniform()).contracts and per_path({"*": topk()}, uniform()).aligned
    assert skip(topk()).contracts and skip(randomk()).aligned and not skip(randomk()).contracts
    assert not delta(topk()).contracts and not error_feedback(topk()).aligned
    assert delta(fp8()).unbiased and not delta(randomk()).unbiased


def test_impossible_decays_are_refused():
    with pytest.raises(ValueError, match=r"decay must be 0 to 1; got 1.5"):
        error_feedback(none(), 1.5)
    with pytest.raises(ValueError, match="a codec is needed"):
        error_feedback("topk")


@pytest.mark.parametrize("codec", [topk(0.2), fp8(clip="max", min_ndim=0), NEAREST])
def test_the_reference_after_a_message_is_the_tree_that_was_decoded(codec):
    decoded, states = run(delta(codec), [update(seed) for seed in range(3)])
    for got, state in zip(decoded, states[1:], strict=True):
        for name, reference in state.reference.items():
            np.testing.assert_array_equal(reference, trees.named_leaves(got)[name])


def test_a_receiver_with_a_program_of_its_own_has_the_senders_reference():
    codec, tree = delta(fp8(clip="max", min_ndim=0)), update()
    state = codec.init(tree)
    encode, decode = jax.jit(codec.encode), jax.jit(codec.decode)
    for seed in range(4):
        message, after = encode(jax.random.key(seed), state, update(seed))
        for name, got in trees.named_leaves(decode(state, message)).items():
            if name in after.reference:
                np.testing.assert_array_equal(got, after.reference[name])
        state = after


def test_differences_of_a_model_that_stands_still_bring_all_of_it_in_the_end():
    decoded, _ = run(delta(topk(count=10)), [update()] * 3)  # 30 values, the 10 largest differences each time
    for got, sent in zip(jax.tree.leaves(decoded[-1]), jax.tree.leaves(update()), strict=True):
        np.testing.assert_array_equal(got, sent)
    left = [np.count_nonzero(np.asarray(tree["update"]["a"]) == 0) for tree in decoded]
    assert left[0] > left[1] > left[2] == 0


def test_differences_shrink_the_error_of_a_quantizer_from_message_to_message():
    sequence = [update()] * 4
    decoded, _ = run(delta(NEAREST), sequence)
    errors = [np.abs(np.asarray(tree["update"]["a"]) - np.asarray(update()["update"]["a"])).max() for tree in decoded]
    # each message takes off at least 15 of 16 parts of the largest error: half a step of 2**-3, relative
    assert all(after <= before / 8 + 1e-7 for before, after in itertools.pairwise(errors))


def blocks(values):
    """A block per value: modules whose kernels hold size equal numbers."""
    return {"update": {f"m{i}": {"kernel": jnp.full(size, value)} for i, (size, value) in enumerate(values)}}


def kept(codec, tree):
    message, _ = codec.encode(jax.random.key(0), codec.init(tree), tree)
    decoded = codec.decode(codec.init(tree), message)
    return message, [bool(np.any(np.asarray(m["kernel"]))) for m in decoded["update"].values()]


def test_the_walk_passes_over_a_block_that_does_not_fit():
    # sizes 5, 4, 3, 1, 2 in this order of importance; of 15 values 10 may be sent. Norm over size of a constant block
    # is value / sqrt(size), so that these values give importances 5, 4, 3, 2, 1.
    tree = blocks([(n, rank * np.sqrt(n)) for n, rank in ((5, 5), (4, 4), (3, 3), (1, 2), (2, 1))])
    message, which = kept(skip(none(), 1 / 3), tree)
    assert which == [True, True, False, True, False]
    np.testing.assert_array_equal(message.sections.present, [0b01011])
    assert [int(np.count_nonzero(x)) for x in jax.tree.leaves(message.sections.parts)] == [5, 4, 0, 1, 0]


def test_a_block_larger_than_half_of_the_budget_is_cut_into_rows_and_its_most_important_rows_are_sent():
    # 9 * 2 + 3 values of which 14 may be sent: the kernel is cut into pieces of at most 7, which are of 3 rows here
    kernel = np.repeat([1.0, 5.0, 3.0], 3)[:, None] * np.ones((9, 2), np.float32)
    tree = {"update": {"layer": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.ones(3)}}}
    codec = skip(none(), 1 / 3)
    message, _ = codec.encode(jax.random.key(0), codec.init(tree), tree)
    # norms over sizes: bias sqrt(3) / 3 = 0.58, pieces v sqrt(6) / 6 = 0.41 v
    assert [sum(x.size for x in part.values()) for part in message.sections.parts] == [3, 6, 6, 6]
    np.testing.assert_array_equal(message.sections.present, [0b1100])  # 12 of 14 values, and then the bias does not fit
    decoded = codec.decode(codec.init(tree), message)["update"]["layer"]
    np.testing.assert_array_equal(decoded["kernel"], kernel * (kernel > 1))


@pytest.mark.parametrize(
    "shapes",
    [
        ((784, 20), (20,), (20, 10), (10,)),
        ((3, 3, 1, 8), (8,), (156, 40), (40,)),
        ((1, 90), (5,)),
        ((300,), (2, 2)),
    ],
    ids=["mlp", "cnn", "one row", "a vector"],
)
@pytest.mark.parametrize("dropout", [0.02, 0.3, 0.8])
def test_every_value_of_every_model_travels_some_time(shapes, dropout):
    """With `error_feedback`, which brings what was left out: of a constant update everything arrives."""
    tree = {"update": {f"layer_{i // 2}": {} for i in range(len(shapes))}}
    for i, shape in enumerate(shapes):
        tree["update"][f"layer_{i // 2}"][f"w{i}"] = 1.0 + jnp.abs(normal(i, *shape))
    codec = error_feedback(skip(none(), dropout))

    @jax.jit
    def arrived(state):
        def one(state, _):
            message, after = codec.encode(jax.random.key(0), state, tree)
            return after, jax.tree.map(lambda x: x != 0, codec.decode(state, message))

        return jax.tree.map(lambda x: jnp.any(x, axis=0), jax.lax.scan(one, state, length=60)[1])

    for x in jax.tree.leaves(arrived(codec.init(tree))):
        assert np.all(x)


def test_a_budget_too_small_for_any_piece_is_refused():
    tree = {"update": {"a": jnp.ones((3, 3))}}
    with pytest.raises(UserError, match=r"dropout=0.95 leaves room for 0 of 9 values, too few for a piece of 3"):
        skip(none(), 0.95).init(tree)


def test_importance_is_the_norm_over_the_number_of_values():
    # norms 2 * sqrt(16) = 8 and 3: per value 0.5 and 3
    _, which = kept(skip(none(), 0.9), blocks([(16, 2.0), (1, 3.0)]))
    assert which == [False, True]


def test_no_dropout_sends_all_and_dropout_of_all_is_refused():
    sizes = [(3, 0.7), (4, -2.0), (2, 1e30), (5, 1e-30)]
    tree = blocks(sizes)
    codec = skip(none(), 0.0)
    message, _ = codec.encode(jax.random.key(0), codec.init(tree), tree)
    jax.tree.map(np.testing.assert_array_equal, codec.decode(codec.init(tree), message), tree)
    for impossible in (1, -0.1):
        with pytest.raises(ValueError, match=rf"dropout must be from 0 to below 1.*; got {impossible}"):
            skip(none(), impossible)
    assert skip(fp8(), 0.0).unbiased
    assert not skip(fp8(), 0.3).unbiased


def test_values_whose_squares_leave_float32_are_ranked_too():
    _, which = kept(skip(none(), 0.5), blocks([(2, 1e-30), (2, 2e-30), (2, 3e30), (2, 1e30)]))
    assert which == [False, False, True, True]


def test_blocks_are_modules_or_patterns():
    tree = {
        "update": {"conv": {"kernel": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}},
        "state": {"norm": {"var": jnp.ones(3)}},
    }
    names = lambda codec: [set(state) for state in codec.init(tree)]
    remember = error_feedback(none())._replace(init=lambda part: {name: 0 for name in part})
    assert names(skip(remember, 0.0)) == [
        {"state/norm/var", "update/norm/scale"}, {"update/conv/kernel"}, {"update/head/kernel"},
    ]  # fmt: skip
    together = skip(remember, 0.0, blocks=("*/conv/*", "*/norm/*"))
    assert names(together) == [{"state/norm/var", "update/norm/scale"}, {"update/conv/kernel"}, {"update/head/kernel"}]
    assert names(skip(remember, 0.0, blocks="*kernel"))[1] == {"update/conv/kernel", "update/head/kernel"}
    with pytest.raises(UserError, match=r"pattern '\*/kernal' matches none of"):
        skip(none(), blocks=("*/kernal",)).init(tree)


def test_a_block_that_is_left_out_keeps_its_inner_state_and_what_is_sent_is_the_inner_codecs():
    codec = skip(error_feedback(topk(count=1)), 1 / 3)
    values = {"large": [3.0, 2.0], "mid": [2.0, 1.0], "small": [1.0, 0.5]}
    tree = {"update": {name: jnp.array(x) for name, x in values.items()}}
    message, after = codec.encode(jax.random.key(0), codec.init(tree), tree)
    np.testing.assert_array_equal(after[0].residual["update/large"], [0, 2])
    np.testing.assert_array_equal(after[1].residual["update/mid"], [0, 1])
    np.testing.assert_array_equal(after[2].residual["update/small"], [0, 0])
    decoded = codec.decode(codec.init(tree), message)
    np.testing.assert_array_equal(decoded["update"]["large"], [3, 0])
    np.testing.assert_array_equal(decoded["update"]["small"], [0, 0])
    assert trees.num_bytes(message) == 1 + 3 * (4 + 1)  # a byte of bits; three values, each with a packed position


def test_under_delta_a_block_that_is_left_out_stays_at_the_reference():
    tree = {"params": {"large": jnp.array([3.0, 2.0]), "small": jnp.array([1.0, 0.5])}}
    decoded, _ = run(delta(skip(none(), 0.5)), [tree, tree])
    np.testing.assert_array_equal(decoded[0]["params"]["small"], [0, 0])
    jax.tree.map(np.testing.assert_array_equal, decoded[1], tree)
