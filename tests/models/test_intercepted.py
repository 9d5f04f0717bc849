"""Interceptors of flax end with their block, also where flax forgets them."""

import contextlib

import flax.linen.module as flax_module
import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax8.models.linen import from_linen, intercepted


def test_an_interceptor_that_flax_keeps_sees_nothing_after_its_block(monkeypatch):
    """Under `python -O` flax does not take interceptors away, since it does so within an `assert`."""
    stack = flax_module._global_interceptor_stack

    @contextlib.contextmanager
    def forgetful(interceptor):
        stack.push(interceptor)
        yield

    monkeypatch.setattr(nn, "intercept_methods", forgetful)
    model, seen = from_linen(nn.Dense(3)), []
    batch = {"x": jnp.ones((2, 4))}

    def multiply(path, product, x, kernel):
        seen.append(path)
        return product.forward(x, kernel)

    try:
        variables = model.init(jax.random.key(0), batch)
        expected, _ = model.apply(variables, batch)
        with intercepted(lambda next_call, args, kwargs, context: next_call(*args, **kwargs) + 1.0):
            inside, _ = model.apply(variables, batch)
        model.apply(variables, batch, multiply=multiply)
        after, _ = model.apply(variables, batch)
    finally:
        for _ in range(2):  # what the two blocks left
            stack.pop()
    assert len(seen) == 1
    assert jnp.array_equal(inside, expected + 1.0) and jnp.array_equal(after, expected)
