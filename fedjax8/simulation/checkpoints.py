"""Checkpoints by Orbax: the whole state of a run, so that a resumed run equals an unbroken one bit for bit."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from fedjax8.errors import UserError
from fedjax8.simulation.hosts import ALONE, Hosts
from fedjax8.simulation.ledger import Ledger
from fedjax8.simulation.simulation import SimulationState
from fedjax8.types import PyTree

FOLDER = "checkpoints"
KEEP = 2


class Checkpoints:
    """Numbered checkpoints of one run; use `open_checkpoints`. Process 0 has the files, all have the same state."""

    def __init__(self, manager: Any, hosts: Hosts):
        self._manager, self._hosts = manager, hosts
        self._newest = 0

    def save(self, state: SimulationState, seconds: float) -> None:
        """Writes the state after `state.round` rounds;

        returns when it is on disk. Saving a round again does nothing.
        """
        import orbax.checkpoint as ocp

        if state.round <= self._newest:
            return
        state.clients.mark(state.round)
        self._hosts.wait()  # for the marks of all: whatever was cut short, there is one for the checkpoint
        self._newest = state.round
        if not self._hosts.first:
            return
        arrays = jax.device_get((state.server, state.down_states, state.clients.arrays()))
        host = {"ledger": state.ledger.to_json(), "seconds": seconds}
        self._manager.save(
            state.round, args=ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(host))
        )
        self._manager.wait_until_finished()

    def restore(self, like: SimulationState) -> tuple[SimulationState, float] | None:
        """(newest state, seconds spent until then) in NumPy arrays shaped as `like`, or None if there is none."""
        step = self._hosts.ask(lambda: {"step": self._manager.latest_step()})["step"]
        like.clients.rewind(step or 0)
        if step is None:
            return None
        self._newest = step
        arrays = jax.device_get((like.server, like.down_states, like.clients.arrays()))

        def read() -> dict[str, Any]:
            nonlocal arrays
            found = self._read(step, arrays)
            arrays = found.arrays
            return found.host

        host = self._hosts.ask(read)
        server, down_states, clients = self._hosts.spread(arrays)
        store = like.clients.with_arrays(clients)
        return SimulationState(step, server, down_states, store, Ledger.from_json(host["ledger"])), host["seconds"]

    def _read(self, step: int, template: PyTree) -> Any:
        import orbax.checkpoint as ocp

        try:
            return self._manager.restore(
                step,
                args=ocp.args.Composite(arrays=ocp.args.StandardRestore(template), host=ocp.args.JsonRestore()),
            )
        except (ValueError, OSError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--workdir: cannot read the checkpoint of round {step}: {reason}; "
                "remove it to go on from the one before"
            ) from error


@contextlib.contextmanager
def open_checkpoints(workdir: Path, hosts: Hosts = ALONE) -> Iterator[Checkpoints]:
    """The checkpoints of a run's directory; the newest `KEEP` are kept."""
    import orbax.checkpoint as ocp

    if not hosts.first:
        yield Checkpoints(None, hosts)
        return
    folder = (workdir / FOLDER).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEEP,
        create=False,
        enable_async_checkpointing=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
        ),
    )
    with ocp.CheckpointManager(folder, options=options) as manager:
        yield Checkpoints(manager, hosts)
