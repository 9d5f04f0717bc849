"""Which blocks `skip` sends where either of two fits, and not both."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.codecs.none import none
from fedjax8.codecs.skip import skip


def test_the_block_of_the_larger_norm_for_its_size_is_sent_and_not_that_of_the_larger_norm():
    """Norms 4 and 3.29 of 4 and 3 values: 1 and 1.10 per value, and room for 4 values."""
    tree = {"update": {"wide": {"kernel": jnp.full(4, 2.0)}, "narrow": {"kernel": jnp.full(3, 1.9)}}}
    codec = skip(none(), 0.4)
    message, _ = codec.encode(jax.random.key(0), codec.init(tree), tree)
    decoded = codec.decode(codec.init(tree), message)["update"]
    np.testing.assert_array_equal(decoded["narrow"]["kernel"], tree["update"]["narrow"]["kernel"])
    np.testing.assert_array_equal(decoded["wide"]["kernel"], 0.0)
