"""What is stored is what it was, and so are its derivatives; on CPU it is a step of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import xla_cpu

VALUES = (
    np.array([[1.5, -0.0], [np.inf, np.nan]], np.float32),
    np.array([np.nan, 1.0], np.float32),  # the first element decides which branch is named
    np.array([-2.0, 3.0], np.float16),
    np.array([3, 4, 5], np.uint16),
    np.array([-1, 2], np.int32),
    np.zeros((0, 3), np.float32),
)


@pytest.mark.parametrize("x", VALUES, ids=lambda x: f"{x.dtype}{list(x.shape)}")
def test_stored_values_keep_every_bit(x):
    for got in (xla_cpu.stored(jnp.asarray(x)), jax.jit(xla_cpu.stored)(x)):
        assert got.dtype == x.dtype and np.asarray(got).tobytes() == x.tobytes()


@pytest.mark.parametrize("chosen", [0, 1, -2, 2**31 - 1])
def test_apart_computes_the_function_for_any_bits(chosen):
    f = lambda x, y: {"sum": x + y, "sign": x > 0}
    got = jax.jit(lambda bits, x, y: xla_cpu.apart(f, bits, x, y))(jnp.int32(chosen), jnp.float32(2), jnp.float32(3))
    assert float(got["sum"]) == 5 and bool(got["sign"])


def test_gradients_and_tangents_pass_unchanged():
    x, direction = jnp.array([3.0, -1.0, 0.5]), jnp.array([0.1, 10.0, -1.0])
    f = lambda x: jnp.sum(xla_cpu.stored(x * x) * direction)
    np.testing.assert_array_equal(jax.jit(jax.grad(f))(x), 2 * x * direction)
    _, tangent = jax.jvp(lambda x: xla_cpu.stored(x * 2), (x,), (direction,))
    np.testing.assert_array_equal(tangent, 2 * direction)
    per_row = jax.vmap(jax.grad(f))(jnp.stack([x, -x]))
    np.testing.assert_array_equal(per_row, jnp.stack([2 * x * direction, -2 * x * direction]))


def test_what_is_stored_is_not_computed_again_by_what_uses_it():
    """A gather that two loops read: on CPU one loop fills it; without `stored` XLA gathers in both."""

    def program(x, store):
        picked = jnp.where(x[::2] > x[1::2], x[::2], x[1::2])
        picked = xla_cpu.stored(picked) if store else picked
        return jnp.exp(picked), jnp.sort(picked + 1)

    x = jnp.arange(64.0)
    texts = [jax.jit(program, static_argnums=1).lower(x, store).compile().as_text() for store in (True, False)]
    on_cpu = jax.default_backend() == "cpu"
    assert ["conditional(" in text for text in texts] == [on_cpu, False]


def halved(x, y, scale):
    """Element by element, and a sum."""
    return jnp.where(x > 0, x * scale, y), jnp.sum(x * y)


@pytest.mark.parametrize(
    "shape", [(20, 14, 14, 6), (4096, 1, 3), (64, 16, 5, 1), (20, 1176), (5, 5, 6), (4096,)], ids=str
)
def test_one_loop_gives_what_the_function_gives(shape, rng):
    x, y = (jnp.asarray(rng.integers(-8, 9, shape), jnp.float32) for _ in range(2))  # so that sums are exact
    got = jax.jit(lambda *a: xla_cpu.in_one_loop(halved, *a))(x, y, jnp.float32(0.5))
    jax.tree.map(np.testing.assert_array_equal, got, halved(x, y, 0.5))
    assert got[0].shape == shape and got[1].shape == ()
    mapped = jax.vmap(lambda *a: xla_cpu.in_one_loop(halved, *a))(jnp.stack([x, -x]), jnp.stack([y, y]), jnp.ones(2))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), mapped, halved(-x, y, 1.0))


@pytest.mark.parametrize(
    ("shape", "short"),
    [
        ((20, 14, 14, 6), True),
        ((20, 28, 28, 1), False),
        ((64, 64, 3, 1), True),
        ((9, 10, 6), False),
        ((64, 64, 16), False),
    ],
    ids=str,
)
def test_one_loop_is_made_where_the_last_axis_is_short_and_there_is_enough_to_do(shape, short):
    text = jax.jit(lambda x: xla_cpu.in_one_loop(jnp.tanh, x)).lower(jnp.ones(shape)).compile().as_text()
    assert ("conditional(" in text) == (short and jax.default_backend() == "cpu")


def test_devices_of_a_mesh_may_store_and_loop(rng):
    x = jnp.asarray(rng.standard_normal((2, 20, 14, 14, 6)), jnp.float32)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = jax.sharding.PartitionSpec("d")
    for f in (xla_cpu.stored, lambda x: xla_cpu.in_one_loop(jnp.abs, x)):
        on_mesh = jax.shard_map(lambda x, f=f: f(x[0])[None], mesh=mesh, in_specs=shard, out_specs=shard)
        np.testing.assert_array_equal(jax.jit(on_mesh)(x), jax.vmap(f)(x))
