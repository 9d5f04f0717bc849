"""Errors of memory, with advice on what to change."""

import contextlib
from collections.abc import Iterator

import jax

from fedjax8.errors import UserError


@contextlib.contextmanager
def memory_explained(chunk: int) -> Iterator[None]:
    """Turns out-of-memory errors of JAX or Python into a UserError. `chunk` clients are trained at once."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fewer = f"--config.executor.chunk={chunk // 2} (of the executor auto), " if chunk > 1 else ""
        raise UserError(
            f"out of memory, with {chunk} client{'s' * (chunk > 1)} at once on each device "
            f"({' '.join(str(error).split())[:160]}); try {fewer}a smaller --config.client.batch_size, "
            "--config.feed=streamed, which keeps no rows on the device, or --config.rounds_per_call=1; another setting "
            "needs another --workdir"
        ) from error
