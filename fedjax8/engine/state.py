"""State of a run between calls."""

import math
from typing import NamedTuple

import jax
import numpy as np

from fedjax8.display import Facts, shows
from fedjax8.engine.states.client_states import ClientStates
from fedjax8.exchange.ledger import Ledger
from fedjax8.types import PyTree


@shows
class SimulationState(NamedTuple):
    """State of a run between rounds, all of it."""

    round: int
    """Rounds done."""
    server: PyTree
    """The algorithm's server state."""
    down_states: dict[str, PyTree]
    """State of the downlink codec by channel."""
    clients: ClientStates
    """Persistent states of all registered clients. On disk, rounds change them in place: go on from the state that a
    round returned, and not from one before it."""
    ledger: Ledger
    step_scale: float | None = None
    """Factor on every step of the clients; None for 1, which is no argument of the compiled program."""

    def _facts(self) -> Facts:
        sizes = [math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(self.server)]
        facts = {"rounds": self.round, "numbers_of_the_server": sum(sizes), "step_scale": self.step_scale}
        return facts | self.ledger.totals() | {"saving": f"{self.ledger.saving:.2f}x"}
