"""`error_feedback`, `delta` and `skip`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.codecs.delta import delta
from fedjax8.codecs.error_feedback import error_feedback
from fedjax8.codecs.fp8 import fp8
from fedjax8.codecs.none import none
from fedjax8.codecs.skip import skip
from fedjax8.codecs.topk import topk
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
    decoded, states = run(error_feedback(delta(NEAREST)), [update(), update(1)])
    assert set(states[-1].residual) == {"update/a", "update/b"}
    assert set(states[-1].inner.reference) == {"update/a", "update/b"}
    np.testing.assert_array_equal(decoded[1]["count"], np.arange(2))


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
    # sizes 6, 5, 3, 1 in this order of importance; of 15 values 10 may be sent. Norm over size of a constant block is
    # value / sqrt(size), so that these values give importances 4, 3, 2, 1.
    tree = blocks([(n, rank * np.sqrt(n)) for n, rank in ((6, 4), (5, 3), (3, 2), (1, 1))])
    message, which = kept(skip(none(), 1 / 3), tree)
    assert which == [True, False, True, True]
    np.testing.assert_array_equal(message.sections.present, [0b1101])
    assert [int(np.count_nonzero(x)) for x in jax.tree.leaves(message.sections.parts)] == [6, 0, 3, 1]


def test_importance_is_the_norm_over_the_number_of_values():
    # norms 2 * sqrt(16) = 8 and 3: per value 0.5 and 3
    _, which = kept(skip(none(), 0.9), blocks([(16, 2.0), (1, 3.0)]))
    assert which == [False, True]


def test_no_dropout_sends_all_and_full_dropout_nothing():
    sizes = [(3, 0.7), (4, -2.0), (2, 1e30), (5, 1e-30)]
    tree = blocks(sizes)
    for dropout, expected in ((0.0, True), (1.0, False)):
        codec = skip(none(), dropout)
        message, _ = codec.encode(jax.random.key(0), codec.init(tree), tree)
        decoded = codec.decode(codec.init(tree), message)
        wanted = tree if expected else trees.zeros_like(tree)
        jax.tree.map(np.testing.assert_array_equal, decoded, wanted)
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
    assert names(skip(remember)) == [
        {"state/norm/var", "update/norm/scale"}, {"update/conv/kernel"}, {"update/head/kernel"},
    ]  # fmt: skip
    together = skip(remember, blocks=("*/conv/*", "*/norm/*"))
    assert names(together) == [{"state/norm/var", "update/norm/scale"}, {"update/conv/kernel"}, {"update/head/kernel"}]
    assert names(skip(remember, blocks="*kernel"))[1] == {"update/conv/kernel", "update/head/kernel"}
    with pytest.raises(UserError, match=r"pattern '\*/kernal' matches none of"):
        skip(none(), blocks=("*/kernal",)).init(tree)


def test_a_block_that_is_left_out_keeps_its_inner_state_and_what_is_sent_is_the_inner_codecs():
    codec = skip(error_feedback(topk(count=1)), 0.5)
    tree = {"update": {"large": jnp.array([3.0, 2.0]), "small": jnp.array([1.0, 0.5])}}
    message, after = codec.encode(jax.random.key(0), codec.init(tree), tree)
    np.testing.assert_array_equal(after[0].residual["update/large"], [0, 2])
    np.testing.assert_array_equal(after[1].residual["update/small"], [0, 0])
    decoded = codec.decode(codec.init(tree), message)
    np.testing.assert_array_equal(decoded["update"]["large"], [3, 0])
    np.testing.assert_array_equal(decoded["update"]["small"], [0, 0])
    assert trees.num_bytes(message) == 1 + 2 * (4 + 1)  # a byte of bits; two values, each with a packed position


def test_under_delta_a_block_that_is_left_out_stays_at_the_reference():
    tree = {"params": {"large": jnp.array([3.0, 2.0]), "small": jnp.array([1.0, 0.5])}}
    decoded, _ = run(delta(skip(none(), 0.5)), [tree, tree])
    np.testing.assert_array_equal(decoded[0]["params"]["small"], [0, 0])
    jax.tree.map(np.testing.assert_array_equal, decoded[1], tree)


def test_impossible_dropouts_are_refused():
    with pytest.raises(ValueError, match=r"dropout must be 0 to 1; got -0.1"):
        skip(none(), -0.1)
