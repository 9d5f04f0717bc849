"""Several processes in one run: their agreement between calls, so that all do the same.

Process 0 reads and writes the files of the run and talks to the user. The others get the contents, and agree with it on
decisions by a clock or a signal. Everything goes over the network of the devices: no shared files are needed.
A process alone agrees with itself, at no cost.
"""

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from fedjax8.errors import UserError
from fedjax8.types import PyTree

_WORD = struct.Struct("<d?q")  # seconds, whether something is due, signal


class Hosts(NamedTuple):
    """The processes of a run, as one of them sees them. All must call `gather` and `spread` in the same order."""

    number: int
    """Number of this process."""
    gather: Callable[[np.ndarray], np.ndarray]
    """uint8 `[n]` of each process to `[processes, n]`, on all."""
    spread: Callable[[PyTree], PyTree]
    """Arrays to those of process 0, bit for bit; the others give a tree of the same shapes and dtypes."""

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.number == 0

    def agree(self, seconds: float, due: bool, signal_number: int | None) -> tuple[float, bool, int | None]:
        """(the seconds of process 0, whether something is due by its clock, a signal if any process got one)."""
        word = np.frombuffer(_WORD.pack(seconds, due, signal_number or 0), np.uint8)
        words = [_WORD.unpack(of_process.tobytes()) for of_process in self.gather(word)]
        return words[0][0], words[0][1], max(signal for *_, signal in words) or None

    def ask(self, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The answer of process 0, which must be JSON; its `UserError` is raised by all."""
        reply: dict[str, Any] = {}
        if self.first:
            try:
                reply = {"answer": answer()}
            except UserError as error:
                reply = {"error": str(error)}
        text = json.dumps(reply).encode()
        length = np.array([len(text)])
        length = self.spread(length)[0]
        text = self.spread(np.frombuffer(text.ljust(length)[:length], np.uint8)).tobytes()
        reply = json.loads(text)
        if "error" in reply:
            raise UserError(reply["error"])
        return reply["answer"]

    def check_same(self, what: str, content: Any) -> None:
        """Raises UserError in all processes unless all have the same content, which must be JSON."""
        text = json.dumps(content, sort_keys=True, default=str).encode()
        digests = self.gather(np.frombuffer(hashlib.sha256(text).digest(), np.uint8))
        if (digests != digests[0]).any():
            others = [i for i, digest in enumerate(digests) if (digest != digests[0]).any()]
            raise UserError(
                f"the processes do not have the same {what}: 0 and {', '.join(map(str, others))} differ; start all of "
                "them with the same command, on the same version and data"
            )

    def wait(self) -> None:
        """Returns when all processes have come this far."""
        self.gather(np.zeros(1, np.uint8))


ALONE = Hosts(0, lambda word: word[None], lambda tree: tree)


def hosts() -> Hosts:
    """The processes of this run."""
    if jax.process_count() == 1:
        return ALONE
    return Hosts(jax.process_index(), multihost_utils.process_allgather, _spread)


def _spread(tree: PyTree) -> PyTree:
    # As bytes: the devices have no 64-bit numbers, and a sum that adds 0 loses the sign of -0.
    tree = jax.tree.map(np.asarray, jax.device_get(tree))
    as_bytes = jax.tree.map(lambda x: np.ascontiguousarray(x).reshape(-1).view(np.uint8), tree)
    of_first = multihost_utils.broadcast_one_to_all(as_bytes)
    return jax.tree.map(lambda x, like: np.array(x).view(like.dtype).reshape(like.shape), of_first, tree)
