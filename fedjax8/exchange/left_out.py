"""Numbers of the clients that a round excluded, for the log, at no cost that grows with the cohort.

A client that is left out is added to one of `CELLS` cells, chosen by a hash of its number i, as (1, i, i^2). Sums of
these go through any reduction. A cell names its client if all it holds can be of one: count * sum of squares = square
of the sum. Where two share a cell neither is named; how many there are, `excluded` says.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax8.types import Array

CELLS = 16
"""Enough to name the few clients that a person would look at."""
_WORD = 1 << 32


def no_cells() -> Array:
    """uint32 `[CELLS, 3]` zeros: nobody is left out."""
    return jnp.zeros((CELLS, 3), jnp.uint32)


def cells(client: Array, left_out: Array) -> Array:
    """uint32 `[CELLS, 3]`: the cells of one client, all zeros unless it is left out."""
    i = client.astype(jnp.uint32)
    here = (jnp.arange(CELLS, dtype=jnp.uint32) == _cell(i)) & left_out
    return jnp.asarray(here[:, None] * jnp.stack([jnp.uint32(1), i, i * i]))


def named(summed: np.ndarray, num_clients: int) -> list[int]:
    """Numbers of the clients that can be read off a sum of many `cells`, in ascending order."""
    found = []
    for cell, (count, total, squares) in enumerate(np.asarray(summed).tolist()):
        if not count or total % count or (count * squares - total * total) % _WORD:
            continue
        client = total // count
        if client < num_clients and int(_cell(np.uint32(client))) == cell:
            found.append(client)
    return sorted(found)


def _cell(client: Any) -> Any:
    """Cell of a client: the top bits of its number times the golden ratio, so that neighbors lie apart."""
    with np.errstate(over="ignore"):  # it is meant to wrap
        return (client * np.uint32(0x9E3779B1)) >> np.uint32(32 - (CELLS - 1).bit_length())
