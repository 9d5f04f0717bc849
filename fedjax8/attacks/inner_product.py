"""Inner-product manipulation: attackers send the negated honest mean (Xie et al. 2019, "Fall of Empires: Breaking
Byzantine-tolerant SGD by Inner Product Manipulation", arXiv 1903.03936, section 4).

    d_bad = -scale * mean of the honest clients' changes

A small scale hides among honest changes, where Krum finds the nearest neighbors; a large one negates the mean.
Attackers know every honest change, so each round trains everyone twice.
"""

from fedjax8 import trees
from fedjax8.attacks._members import members
from fedjax8.types import Attack


def inner_product(share: float = 0.2, scale: float = 0.5, *, count: int | None = None, seed: int = 0) -> Attack:
    """Attackers that send -`scale` times the honest mean; `share`, `count` and `seed` as in `sign_flip`."""
    if not scale > 0:
        raise ValueError(f"scale must be above 0; got {scale}")
    send = lambda key, change, known: trees.scale(-scale, known.mean)
    return Attack(members(share, count, seed), send=send, collude=True)


EXAMPLES = ({}, {"scale": 10.0, "count": 1})
