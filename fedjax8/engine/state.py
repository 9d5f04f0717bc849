"""What a run carries between calls."""

from typing import NamedTuple

from fedjax8.engine.states.client_states import ClientStates
from fedjax8.exchange.ledger import Ledger
from fedjax8.types import PyTree


class SimulationState(NamedTuple):
    """All that a run carries from round to round."""

    round: int
    """Rounds done."""
    server: PyTree
    """The algorithm's server state."""
    down_states: dict[str, PyTree]
    """State of the downlink codec by channel."""
    clients: ClientStates
    """Persistent states of all registered clients. Where they lie on disk rounds change them in place: go on from the
    state that a round returned, and not from one before it."""
    ledger: Ledger
    step_scale: float | None = None
    """Factor on every step of the clients; None: there is none, and the compiled program takes none."""
