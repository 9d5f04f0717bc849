"""One device, one client after another: the reference that the other executors are held against."""

from fedjax8.executors.chunked import chunked
from fedjax8.types import Executor


def loop() -> Executor:
    """Executor that trains clients one by one. Under `jax.disable_jit()` it is a plain Python loop to step through."""
    return chunked(1)


EXAMPLES = ({},)
