"""Checkpoints by Orbax: the whole state of a run, so that a resumed run equals an unbroken one bit for bit.

What was written is checked when it is read, by a checksum. A checkpoint that cannot be read is put aside for the one
before it.
"""

import contextlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax8.errors import UserError
from fedjax8.simulation.hosts import ALONE, Hosts
from fedjax8.simulation.ledger import Ledger
from fedjax8.simulation.simulation import SimulationState
from fedjax8.types import PyTree

FOLDER = "checkpoints"
UNREADABLE = "unreadable-checkpoint"
KEEP = 2


class NotSaved(UserError):
    """A checkpoint could not be written. Those before it are as they were, and so is the state: a run may go on."""


class Checkpoints:
    """Numbered checkpoints of one run; use `open_checkpoints`. Process 0 has the files, all have the same state."""

    def __init__(self, manager: Any, folder: Path, hosts: Hosts):
        self._manager, self._folder, self._hosts = manager, folder, hosts
        self._newest = 0
        self.notes: list[str] = []
        """What a person should know of what `restore` found."""

    def save(self, state: SimulationState, seconds: float) -> None:
        """Writes the state after `state.round` rounds;

        returns when it is on disk. Saving a round again does nothing. Raises `NotSaved`, on all processes.
        """
        if state.round <= self._newest:
            return
        state.clients.mark(state.round)
        self._hosts.wait()  # for the marks of all: whatever was cut short, there is one for the checkpoint
        problem = self._hosts.ask(lambda: {"problem": self._write(state, seconds)})["problem"]
        if problem:
            raise NotSaved(problem)
        self._newest = state.round

    def _write(self, state: SimulationState, seconds: float) -> str | None:
        """What went wrong, if anything."""
        import orbax.checkpoint as ocp

        arrays = jax.device_get((state.server, state.down_states, state.clients.arrays()))
        host = {"ledger": state.ledger.to_json(), "seconds": seconds}
        host["checksum"] = checksum(arrays, host)
        content = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(host))
        try:
            with _quiet():
                self._manager.save(state.round, args=content, force=True)
                self._manager.wait_until_finished()
        except Exception as error:  # a full disk is a ValueError, an OSError, or what the storage library makes of it
            return (
                f"--workdir: cannot save round {state.round} in {self._folder}: {_reason(error)}; make room there, or "
                f"see to its permissions. {self._last_good()}"
            )
        return None

    def _last_good(self) -> str:
        return f"The checkpoint of round {self._newest} is as it was" if self._newest else "There is no earlier one"

    def restore(self, like: SimulationState) -> tuple[SimulationState, float] | None:
        """(newest state that can be read, seconds spent until then) in NumPy arrays shaped as `like`, or None if there
        are no checkpoints.

        One that is damaged is moved out of the way, to the run's folder, and named in `notes`. UserError where none of
        those there can be read.
        """
        arrays = jax.device_get((like.server, like.down_states, like.clients.arrays()))

        def read() -> dict[str, Any]:
            nonlocal arrays
            found, arrays, bad = self._newest_readable(arrays)
            return {"found": found, "bad": bad}

        told = self._hosts.ask(read)
        self.notes += told["bad"]
        if told["found"] is None:
            like.clients.rewind(0)
            return None
        step, host = told["found"]["step"], told["found"]["host"]
        like.clients.rewind(step)
        self._newest = step
        server, down_states, clients = self._hosts.spread(arrays)
        store = like.clients.with_arrays(clients)
        return SimulationState(step, server, down_states, store, Ledger.from_json(host["ledger"])), host["seconds"]

    def _newest_readable(self, template: PyTree) -> tuple[dict[str, Any] | None, PyTree, list[str]]:
        """({step, host}, arrays, what to say of those that are newer)."""
        bad: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                with _quiet():
                    found = self._read(step, template)
            except Exception as error:  # damage shows as almost anything
                bad[step] = _reason(error)
                continue
            notes = [f"{self._set_aside(step)} cannot be read ({why}); going back" for step, why in bad.items()]
            return {"step": step, "host": found.host}, found.arrays, notes
        if bad:
            each = "; ".join(f"round {step}: {why}" for step, why in bad.items())
            raise UserError(
                f"--workdir: no checkpoint in {self._folder} can be read ({each}); put back a copy of one, or choose "
                "another directory to start over"
            )
        return None, template, []

    def _read(self, step: int, template: PyTree) -> Any:
        import orbax.checkpoint as ocp

        found = self._manager.restore(
            step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(template), host=ocp.args.JsonRestore())
        )
        expected = found.host.pop("checksum", None)
        if expected not in (None, checksum(found.arrays, found.host)):  # checkpoints of before had none
            raise ValueError("its checksum is wrong")
        return found

    def _set_aside(self, step: int) -> Path:
        """Where a damaged checkpoint is from now on."""
        place = self._folder.parent / f"{UNREADABLE}-{step}"
        shutil.rmtree(place, ignore_errors=True)
        os.replace(self._folder / str(step), place)
        self._manager.reload()
        return place


def checksum(arrays: PyTree, host: dict[str, Any]) -> int:
    """crc32 over what JSON makes of `host` and the bytes of all leaves, in tree order."""
    found = zlib.crc32(json.dumps(host, sort_keys=True).encode())
    for leaf in jax.tree.leaves(arrays):
        content = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        found = zlib.crc32(content.data if content.size else b"", found)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the storage library from writing what it raises to the log as well, some pages of it."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__


@contextlib.contextmanager
def open_checkpoints(workdir: Path, hosts: Hosts = ALONE) -> Iterator[Checkpoints]:
    """The checkpoints of a run's directory; the newest `KEEP` are kept. UserError if they cannot be there."""
    import orbax.checkpoint as ocp

    folder = (workdir / FOLDER).absolute()
    if not hosts.first:
        yield Checkpoints(None, folder, hosts)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir: cannot make {folder}: {error.strerror}; choose another directory") from error
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEEP,
        create=False,
        enable_async_checkpointing=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
        ),
    )
    with ocp.CheckpointManager(folder, options=options) as manager:
        yield Checkpoints(manager, folder, hosts)
