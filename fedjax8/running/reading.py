"""Checkpoints of a run that is not gone on with: read, with nothing in its folder changed."""

import contextlib
import os
import shutil
import tempfile
import weakref
from pathlib import Path

import jax

from fedjax8.engine.simulation import Simulation
from fedjax8.engine.state import SimulationState
from fedjax8.errors import UserError
from fedjax8.exchange.ledger import Ledger
from fedjax8.running.checkpoints import FOLDER, manager_in, quiet, read_whole, reason, rounds_in
from fedjax8.running.workdir import CLIENT_STATES, locked


def saved_rounds(workdir: Path) -> list[int]:
    """Rounds of which a run has a checkpoint, ascending."""
    folder = workdir / FOLDER
    return rounds_in(folder) if folder.is_dir() else []


def read_state(workdir: Path, simulation: Simulation, round_number: int) -> SimulationState:
    """The state after a round, read from its checkpoint. States of clients on disk are copied to a temporary folder.

    UserError where the checkpoint, or a copy of the clients' states, cannot be read.
    """
    workdir = workdir.absolute()
    place, own = workdir / FOLDER / str(round_number), workdir / CLIENT_STATES
    with contextlib.ExitStack() as stack:
        temporary = Path(tempfile.mkdtemp(prefix="fedjax8-"))
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        copy = temporary / CLIENT_STATES if own.is_dir() else None
        if copy is not None:
            with locked(workdir):  # no run may change them meanwhile
                copy_sparse(own, copy)
        like = simulation.init(copy)
        template = jax.device_get((like.server, like.down_states, like.clients.arrays()))
        (temporary / "manager").mkdir()
        try:
            with quiet(), manager_in(temporary / "manager") as manager:
                found = read_whole(manager, workdir / FOLDER, round_number, template)
        except Exception as error:  # damage shows as almost anything
            raise UserError(f"{place} cannot be read: {reason(error)}") from error
        if copy is not None:
            like.clients.rewind(round_number)
            weakref.finalize(like.clients, stack.pop_all().close)
    server, down_states, clients = found.arrays
    store = like.clients.with_arrays(clients)
    scale = dict(found.host.get("callbacks", {})).get("step_scale")
    ledger = Ledger.from_json(found.host["ledger"])
    return simulation.place(SimulationState(round_number, server, down_states, store, ledger, scale))


def copy_sparse(source: Path, target: Path) -> None:
    """Copies a folder of files, whose holes stay holes."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        with path.open("rb") as old, (target / path.name).open("wb") as new:
            size, place = os.fstat(old.fileno()).st_size, 0
            new.truncate(size)
            while place < size:
                try:
                    place = os.lseek(old.fileno(), place, os.SEEK_DATA)
                except OSError:  # nothing but a hole is left
                    break
                end = os.lseek(old.fileno(), place, os.SEEK_HOLE)
                old.seek(place)
                new.seek(place)
                while place < end:
                    block = old.read(min(1 << 24, end - place))
                    new.write(block)
                    place += len(block)
