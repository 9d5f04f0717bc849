"""Seconds of compilation, counted from JAX's events."""

import threading

import jax
import jax.numpy as jnp
import pytest

from fedjax8.running.compiling import EVENTS, CompileSeconds, compile_seconds

STAGES = ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
TRACE, LOWER, COMPILE = (f"{EVENTS}{name}_duration" for name in STAGES)


def test_stages_inside_others_count_once():
    now = [0.0]
    said = []
    seconds = CompileSeconds(said.append, clock=lambda: now[0])
    # An outer function is traced from 10 to 16, and in it others from 11 to 12 and from 13 to 15; it is lowered until
    # 17 and compiled until 20.
    for end, event, duration in ((12, TRACE, 1), (15, TRACE, 2), (16, TRACE, 6), (17, LOWER, 1), (20, COMPILE, 3)):
        now[0] = float(end)
        seconds.heard(event, float(duration))
    assert seconds.take() == pytest.approx(10.0)
    assert seconds.take() == 0.0
    assert said == [True, False]
    now[0] = 30.0
    seconds.heard("/jax/something/else", 5.0)
    thread = threading.Thread(target=seconds.heard, args=(COMPILE, 5.0))
    thread.start()
    thread.join()
    assert seconds.total == pytest.approx(10.0)


def test_a_program_is_compiled_once_and_counted():
    program = jax.jit(lambda x: jnp.sin(x) * 3.25)
    x = jnp.ones(7)
    with compile_seconds() as seconds:
        program(x)
        assert seconds.take() > 0
        program(x)
        assert seconds.take() == 0
    jax.jit(lambda x: jnp.cos(x) * 3.5)(x)
    assert seconds.take() == 0  # no longer listening
