"""Which blocks `skip` sends where either of two fits, and not both."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.codecs.none import none
from fedjax8.codecs.skip import skip


def test_the_block_of_the_larger_norm_for_its_size_is_sent_and_not_that_of_the_larger_norm():
    """Room for 8 of 11 values, of which the first block takes 4; left are norms 4 and 3.29 of 4 and 3 values:
    1 and 1.10 a value.
    """
    values = {"first": jnp.full(4, 10.0), "wide": jnp.full(4, 2.0), "narrow": jnp.full(3, 1.9)}
    tree = {"update": {name: {"kernel": x} for name, x in values.items()}}
    codec = skip(none(), 0.27)
    message, _ = codec.encode(jax.random.key(0), codec.init(tree), tree)
    decoded = codec.decode(codec.init(tree), message)["update"]
    np.testing.assert_array_equal(decoded["first"]["kernel"], tree["update"]["first"]["kernel"])
    np.testing.assert_array_equal(decoded["narrow"]["kernel"], tree["update"]["narrow"]["kernel"])
    np.testing.assert_array_equal(decoded["wide"]["kernel"], 0.0)
