"""Random dropouts: each client of a round with probability `share`, independently and anew in every round.

All may drop out, and such a round changes nothing.
"""

from fedjax8.dropouts._round import uniform_of
from fedjax8.dropouts.base import Dropout


def random(share: float = 0.1) -> Dropout:
    """The dropout of a random share, from 0 to below 1."""
    if not 0 <= share < 1:
        raise ValueError(f"share must be from 0 to below 1; got {share}")
    return Dropout(lambda key, ids: uniform_of(key, ids) < share)


EXAMPLES = ({}, {"share": 0.5})
