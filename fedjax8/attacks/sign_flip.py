"""Sign flip: attackers send the negated update, d_i -> -scale d_i (Li et al. 2019, "RSA: Byzantine-Robust
Stochastic Aggregation Methods", arXiv 1811.03761, section 5)."""

from fedjax8 import trees
from fedjax8.attacks._members import members
from fedjax8.types import Attack


def sign_flip(share: float = 0.2, scale: float = 1.0, *, count: int | None = None, seed: int = 0) -> Attack:
    """Attackers that send -`scale` times their update.

    Args:
      share: of the registered clients, the share that attacks, drawn by `seed`.
      scale: above 0.
      count: attackers are clients 0 to `count` - 1 instead.
      seed: of the draw, apart from the run's seed: runs of several seeds have the same attackers.
    """
    if not scale > 0:
        raise ValueError(f"scale must be above 0; got {scale}")
    return Attack(members(share, count, seed), send=lambda key, change, known: trees.scale(-scale, change))


EXAMPLES = ({}, {"scale": 10.0, "count": 1})
