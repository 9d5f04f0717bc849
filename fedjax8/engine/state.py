"""State of a run between calls."""

from typing import NamedTuple

from fedjax8.engine.states.client_states import ClientStates
from fedjax8.exchange.ledger import Ledger
from fedjax8.types import PyTree


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
