"""Checkpoints by Orbax: the whole state of a run, so that a resumed run equals an unbroken one bit for bit."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from fedjax8.errors import UserError
from fedjax8.simulation.ledger import Ledger
from fedjax8.simulation.simulation import SimulationState

FOLDER = "checkpoints"
KEEP = 2


class Checkpoints:
    """Numbered checkpoints of one run; use `open_checkpoints`."""

    def __init__(self, manager):
        self._manager = manager

    def save(self, state: SimulationState, seconds: float) -> None:
        """Writes the state after `state.round` rounds;

        returns when it is on disk. Saving a round again does nothing.
        """
        import orbax.checkpoint as ocp

        if state.round in self._manager.all_steps():
            return
        state.clients.mark(state.round)
        arrays = jax.device_get((state.server, state.down_states, state.clients.arrays()))
        host = {"ledger": state.ledger._asdict(), "seconds": seconds}
        self._manager.save(
            state.round, args=ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(host))
        )
        self._manager.wait_until_finished()

    def restore(self, like: SimulationState) -> tuple[SimulationState, float] | None:
        """(newest state, seconds spent until then) in NumPy arrays shaped as `like`, or None if there is none."""
        import orbax.checkpoint as ocp

        step = self._manager.latest_step()
        like.clients.rewind(step or 0)
        if step is None:
            return None
        template = jax.device_get((like.server, like.down_states, like.clients.arrays()))
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(arrays=ocp.args.StandardRestore(template), host=ocp.args.JsonRestore()),
            )
        except (ValueError, OSError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--workdir: cannot read the checkpoint of round {step}: {reason}; "
                "remove it to go on from the one before"
            ) from error
        server, down_states, clients = found.arrays
        store = like.clients.with_arrays(clients)
        state = SimulationState(step, server, down_states, store, Ledger(**found.host["ledger"]))
        return state, found.host["seconds"]


@contextlib.contextmanager
def open_checkpoints(workdir: Path) -> Iterator[Checkpoints]:
    """The checkpoints of a run's directory; the newest `KEEP` are kept."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, create=True, enable_async_checkpointing=False)
    with ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options) as manager:
        yield Checkpoints(manager)
