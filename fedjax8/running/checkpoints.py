"""Checkpoints by Orbax: the whole state of a run, so that a resumed run equals an unbroken one bit for bit.

A checkpoint is written beside the others under another name, put on disk with its metadata and folders, and only then
renamed: it is there as a whole or not at all, wherever a process is killed or the power is cut. The older ones go after
that. A checksum is compared when a checkpoint is read. A checkpoint that cannot be read is put aside for the
one before it.

It is written by a thread while rounds go on, one at a time, from a copy of the state; whether that worked is known when
it is ended, before the next one.

A checkpoint also holds the identity in `config.json`, by which it knows the runs that may resume from it.
"""

import concurrent.futures
import contextlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax8.durable import PART, make_folder, remove, sync_folder, sync_tree
from fedjax8.engine.state import SimulationState
from fedjax8.errors import UserError
from fedjax8.exchange.ledger import Ledger
from fedjax8.hosts import ALONE, Hosts
from fedjax8.running.identity import IDENTITY, refuse_other, says_of_others
from fedjax8.running.workdir import json_ready
from fedjax8.types import PyTree

FOLDER = "checkpoints"
UNREADABLE = "unreadable-checkpoint"
KEEP = 2
_WRITING = f"writing{PART}"
_ORBAX_PART = ".orbax-checkpoint-tmp"  # in the names of folders that earlier versions left half written


class NotSaved(UserError):
    """A checkpoint could not be written. Those before it are as they were, and so is the state: a run may go on."""


class Pending(NamedTuple):
    """A checkpoint that is begun."""

    round: int
    release: Callable[[int], None]
    """`ClientStates.release` of its state."""
    answer: concurrent.futures.Future | None
    """The result of `_write`; None on processes other than the first."""


class Checkpoints:
    """Numbered checkpoints of one run; use `open_checkpoints`. Process 0 has the files, all have the same state."""

    def __init__(self, manager: Any, folder: Path, hosts: Hosts, record: Mapping[str, Any], fixed: Mapping[str, str]):
        self._manager, self._folder, self._hosts, self._fixed = manager, folder, hosts, fixed
        self._record = json.loads(json.dumps(json_ready({k: record[k] for k in IDENTITY if k in record})))
        self._newest = 0
        self._pending: Pending | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self.notes: list[str] = []
        """Remarks of `restore` for the user."""
        self.changed: list[str] = []
        """Devices and versions that are not those of the checkpoint that `restore` found."""
        self.callbacks: Mapping[str, Any] = {}
        """The callbacks' standing at that checkpoint."""
        self.of: Mapping[str, Any] = {}
        """The record in that checkpoint."""

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written, on process 0."""
        return self._pending is not None and self._pending.answer is not None and not self._pending.answer.done()

    def begin(self, state: SimulationState, seconds: float, callbacks: Mapping[str, Any] | None = None) -> bool:
        """Begins to write the state after `state.round` rounds and its callbacks' standing, once the one before is
        ended; False, since nothing is known yet.

        Saving a round again does nothing. Raises `NotSaved`, on all processes, where the clients' states cannot be
        marked.
        """
        if state.round <= self._newest:
            return False
        problem = ""
        try:
            state.clients.mark(state.round)
        except UserError as error:
            problem = f"--workdir: cannot save round {state.round}: {error}. {self._last_good()}"
        # All wait for the marks of all: whatever was cut short, there is one for the checkpoint.
        if self._hosts.gather(np.array([bool(problem)], np.uint8)).any():
            raise NotSaved(problem or f"cannot save round {state.round}: another process could not mark its clients")
        answer = None
        if self._hosts.first:
            # Copies, since the next rounds may overwrite what `device_get` gives.
            arrays = jax.tree.map(np.array, jax.device_get((state.server, state.down_states, state.clients.arrays())))
            host = {"ledger": state.ledger.to_json(), "seconds": seconds, "record": self._record}
            host |= {"callbacks": dict(callbacks)} if callbacks else {}
            answer = self._thread.submit(self._write, state.round, arrays, host)
        self._pending = Pending(state.round, state.clients.release, answer)
        return False

    def end(self) -> bool:
        """Returns when the checkpoint that is begun is on disk; whether there is one. Raises `NotSaved`, on all
        processes."""
        if self._pending is None:
            return False
        pending, self._pending = self._pending, None
        answer = self._hosts.ask(lambda: pending.answer.result() if pending.answer else {})
        if answer["problem"]:
            raise NotSaved(answer["problem"])
        self._newest = pending.round
        pending.release(answer["oldest"])
        return True

    def save(self, state: SimulationState, seconds: float, callbacks: Mapping[str, Any] | None = None) -> None:
        """Writes a checkpoint and returns when it is on disk; see `begin` and `end`."""
        self.begin(state, seconds, callbacks)
        self.end()

    def close(self) -> None:
        """Returns when nothing is written any more."""
        self._thread.shutdown()

    def _write(self, round_number: int, arrays: PyTree, host: dict[str, Any]) -> dict[str, Any]:
        """{problem: error message or None, oldest: the oldest round that is kept}."""
        import orbax.checkpoint as ocp

        host["checksum"] = checksum(arrays, host)
        content = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(host))
        part = self._folder / _WRITING
        try:
            part.mkdir(exist_ok=True)
            with quiet():
                self._manager.save(round_number, args=content, force=True)
                self._manager.wait_until_finished()
            sync_tree(part)
            os.replace(part / str(round_number), self._folder / str(round_number))
            sync_folder(self._folder)
        except Exception as error:  # a full disk is a ValueError, an OSError, or another error of the storage library
            return {
                "problem": f"--workdir: cannot save round {round_number} in {self._folder}: {reason(error)}; make "
                f"room there, or see to its permissions. {self._last_good()}"
            }
        finally:
            for path in part.iterdir() if part.is_dir() else ():
                remove(path)
            self._manager.reload()
        return {"problem": "", "oldest": self._keep_newest()}

    def _keep_newest(self) -> int:
        """Removes all but the newest `KEEP` checkpoints; the oldest that stays. One that cannot be removed may stay."""
        rounds = rounds_in(self._folder)
        for old in rounds[:-KEEP]:
            place = self._folder / str(old)
            with contextlib.suppress(OSError):
                os.replace(place, part := place.with_name(f"{old}{PART}"))  # or a kill would leave half of it
                remove(part)
        return rounds[-KEEP:][0]

    def _last_good(self) -> str:
        return f"The checkpoint of round {self._newest} is as it was" if self._newest else "There is no earlier one"

    def restore(self, like: SimulationState) -> tuple[SimulationState, float] | None:
        """(newest state that can be read, seconds spent until then) in NumPy arrays shaped as `like`, or None if there
        are no checkpoints.

        One that is damaged is moved out of the way, to the run's folder, and named in `notes`, and so are devices and
        versions that are not its own. UserError where none of those there can be read, or the newest that can be is of
        another config or other data.
        """
        arrays = jax.device_get((like.server, like.down_states, like.clients.arrays()))

        def read() -> dict[str, Any]:
            nonlocal arrays
            found, arrays, notes = self._newest_readable(arrays)
            if not found:
                return {"found": None, "notes": notes, "changed": []}
            changed = says_of_others(found["host"].get("record", {}), self._record)
            return {"found": found, "notes": notes, "changed": changed, "oldest": self._keep_newest()}

        answer = self._hosts.ask(read)
        self.notes += answer["notes"]
        self.changed = answer["changed"]
        if self.changed:
            self.notes.append(
                f"devices or versions are not those of the checkpoint ({'; '.join(self.changed)}): the rounds are the "
                "same, but float32 sums may differ in their last bits from those of an unbroken run"
            )
        if answer["found"] is None:
            like.clients.rewind(0)
            return None
        step, host = answer["found"]["step"], answer["found"]["host"]
        self.callbacks, self.of = host.get("callbacks", {}), host.get("record", {})
        like.clients.rewind(step)
        like.clients.release(answer["oldest"])
        self._newest = step
        server, down_states, clients = self._hosts.spread(arrays)
        store = like.clients.with_arrays(clients)
        return SimulationState(step, server, down_states, store, Ledger.from_json(host["ledger"])), host["seconds"]

    def _newest_readable(self, template: PyTree) -> tuple[dict[str, Any] | None, PyTree, list[str]]:
        """({step, host}, arrays, remarks on damaged ones that are newer)."""
        bad: dict[int, str] = {}
        for step in reversed(rounds_in(self._folder)):
            try:
                with quiet():
                    found = self._read(step, template)
            except UserError:  # it is whole, but not of this run
                raise
            except Exception as error:  # damage shows as almost anything
                bad[step] = reason(error)
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
        record = read_host(self._manager, self._folder, step).get("record", {})
        refuse_other(dict(record), self._record, self._folder / str(step), self._fixed)
        return read_whole(self._manager, self._folder, step, template)

    def _set_aside(self, step: int) -> Path:
        """Where a damaged checkpoint is from now on."""
        place = self._folder.parent / f"{UNREADABLE}-{step}"
        remove(place)
        os.replace(self._folder / str(step), place)
        sync_folder(self._folder)
        return place


def rounds_in(folder: Path) -> list[int]:
    """Rounds of the checkpoints in a folder, ascending; other files there are left alone."""
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def read_host(manager: Any, folder: Path, step: int) -> dict[str, Any]:
    """A checkpoint without its arrays: ledger, seconds, record, callbacks."""
    import orbax.checkpoint as ocp

    return manager.restore(step, args=ocp.args.Composite(host=ocp.args.JsonRestore()), directory=folder).host


def read_whole(manager: Any, folder: Path, step: int, template: PyTree) -> Any:
    """A checkpoint: `arrays` shaped as a template, and `host`; ValueError, or another error, where it is damaged."""
    import orbax.checkpoint as ocp

    parts = ocp.args.Composite(arrays=ocp.args.StandardRestore(template), host=ocp.args.JsonRestore())
    found = manager.restore(step, args=parts, directory=folder)
    expected = found.host.pop("checksum", None)
    if expected not in (None, checksum(found.arrays, found.host)):  # checkpoints of before had none
        raise ValueError("its checksum is wrong")
    return found


def manager_in(folder: Path) -> Any:
    """A manager of checkpoints that works in a folder, and reads those in others too."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        create=False,
        enable_async_checkpointing=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
        ),
    )
    return ocp.CheckpointManager(folder, options=options)


def checksum(arrays: PyTree, host: dict[str, Any]) -> int:
    """crc32 over `host` as JSON and the bytes of all leaves, in tree order."""
    found = zlib.crc32(json.dumps(host, sort_keys=True).encode())
    for leaf in jax.tree.leaves(arrays):
        content = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        found = zlib.crc32(content.data if content.size else b"", found)
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the storage library from logging its exceptions too, some pages each."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def reason(error: Exception) -> str:
    """The first line of an error's text, or its kind."""
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__


@contextlib.contextmanager
def open_checkpoints(
    workdir: Path,
    hosts: Hosts = ALONE,
    record: Mapping[str, Any] | None = None,
    fixed: Mapping[str, str] | None = None,
) -> Iterator[Checkpoints]:
    """The checkpoints of a run's directory; the newest `KEEP` are kept. UserError if they cannot be there.

    Half-written checkpoints of killed processes are removed, so hold the directory's lock (`workdir.locked`). `record`
    is the content of `config.json`, `fixed` are fields of it that must not change, with the reason.
    """
    folder = (workdir / FOLDER).absolute()
    if not hosts.first:
        yield Checkpoints(None, folder, hosts, record or {}, fixed or {})
        return
    part = folder / _WRITING
    try:
        make_folder(folder)
        for path in folder.iterdir():
            if path.name.endswith(PART) or _ORBAX_PART in path.name:
                remove(path)
        part.mkdir()
    except OSError as error:
        raise UserError(f"--workdir: cannot make {folder}: {error.strerror}; choose another directory") from error
    try:
        with manager_in(part) as manager:
            made = Checkpoints(manager, folder, hosts, record or {}, fixed or {})
            try:
                yield made
            finally:
                made.close()
    finally:
        remove(part)
