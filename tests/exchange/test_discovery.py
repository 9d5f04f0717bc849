"""A codec of a user's own that breaks its contract is named where the round is traced."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.codecs import none
from fedjax8.errors import UserError
from fedjax8.exchange.discovery import coded

TREE = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)}
KEY = jax.random.key(0)


def test_a_message_is_encoded_and_decoded():
    message, after, decoded = coded(none(), KEY, (), TREE, "model")
    chex.assert_trees_all_equal(decoded, TREE)
    chex.assert_trees_all_equal(message, TREE)
    assert after == ()


@pytest.mark.parametrize(
    ("decode", "said"),
    [
        (lambda state, message: {"w": message["w"]}, "decode gives another tree"),
        (lambda state, message: message | {"w": message["w"].reshape(-1)}, r"decode gives another tree.*\(2, 3\)"),
        (lambda state, message: tuple(message.values()), "decode gives another tree"),
    ],
)
def test_another_tree_than_was_sent_is_refused(decode, said):
    with pytest.raises(UserError, match=f"codec of message 'model': {said}"):
        jax.eval_shape(lambda tree: coded(none()._replace(decode=decode), KEY, (), tree, "model"), TREE)


def test_a_state_that_changes_its_shape_or_dtype_is_refused():
    def counting(new):
        return none()._replace(encode=lambda key, state, tree: (tree, new(state)))

    _, after, _ = coded(counting(lambda count: count + 1), KEY, jnp.int32(3), TREE, "model")
    assert after == 4
    for new in (lambda count: count + 1.5, lambda count: jnp.stack([count, count]), lambda count: (count, count)):
        with pytest.raises(UserError, match="encode gives a state unlike the one it was given"):
            coded(counting(new), KEY, np.int32(3), TREE, "model")
