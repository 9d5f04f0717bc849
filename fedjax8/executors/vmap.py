"""One device, the whole cohort at once."""

import jax

from fedjax8.executors._scan import reduce_chunk
from fedjax8.types import Executor

EVERYONE = 2**31 - 1
"""A chunk that no cohort fills."""


def vmap() -> Executor:
    """Executor that vmaps the whole cohort. Fastest on a GPU while it fits: memory grows with the cohort."""
    return Executor(
        num_shards=1,
        shards=range(1),
        chunk=EVERYONE,
        compile=jax.jit,
        map_reduce=reduce_chunk,
        total=lambda tree: tree,
        place=jax.device_put,
    )


EXAMPLES = ({},)
