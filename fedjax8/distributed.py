"""Processes on one or many hosts that run an experiment together: their connection and their end.

JAX connects them through a coordinator, which process 0 runs. When a process is lost the others see it at once by a
broken connection, at the latest after `HEARTBEAT_SECONDS`; they cannot go on without it and end with `LOST_STATUS`.
"""

import collections
import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from fedjax8 import cli
from fedjax8.devices import start_devices
from fedjax8.errors import UserError

LOST_STATUS = 75
"""EX_TEMPFAIL: the same command on all hosts goes on from the last checkpoint."""
HEARTBEAT_SECONDS = 30
"""Seconds that a process may be silent before it counts as lost: one that only computes is never silent."""
SHUTDOWN_SECONDS = 60
"""Seconds that a finished process waits for the others."""
_PARTING_SECONDS = 1.0  # process 0 goes last, so that the others see its error and not just the coordinator gone
_LOST = (
    "fedjax8: a process of this run was lost; start all of them again with the same --workdir to go on from the last "
    "checkpoint"
)
_NOT_ALL_CAME = (
    "fedjax8: the processes did not come together: not all of them were started in time, or two have the same "
    "--process_id"
)
_BROKEN = ("gloo", "nccl", "coordination", "connection", "socket", "heartbeat", "unavailable", "deadline_exceeded")
"""Words in JAX's errors (`JaxRuntimeError`, `ValueError`) when the connection of the processes is broken."""


class Group(NamedTuple):
    """The processes that run together; see the flags of `train`."""

    coordinator: str | None = None
    """`HOST:PORT` of process 0."""
    num_processes: int | None = None
    process_id: int | None = None
    detect: bool = False
    """Whether JAX finds the processes by itself."""
    connect_seconds: int = 300
    """Seconds to wait for the others."""

    @property
    def alone(self) -> bool:
        """Whether this process runs by itself."""
        return not self.detect and self.coordinator is None


def check_group(group: Group) -> None:
    """UserError unless the flags fit together."""
    given = {name: getattr(group, name) is not None for name in ("coordinator", "num_processes", "process_id")}
    flags = ", ".join(f"--{name}" for name in given)
    if group.detect and any(given.values()):
        raise UserError(f"--distributed finds everything out by itself; give either it or {flags}")
    missing = [f"--{name}" for name, is_given in given.items() if not is_given]
    if any(given.values()) and missing:
        raise UserError(f"{flags} belong together; {' and '.join(missing)} not given")
    number, processes, coordinator = group.process_id, group.num_processes, group.coordinator
    if number is None or processes is None or coordinator is None:  # alone, or JAX finds out
        return
    if not 0 <= number < processes:
        raise UserError(
            f"--process_id is {number}, but must be 0 to {processes - 1}, one of each, with --num_processes={processes}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--coordinator is {coordinator!r}, but must be HOST:PORT of process 0")


@contextlib.contextmanager
def together(group: Group) -> Iterator[None]:
    """Connects the processes of a group, before JAX's devices are used; a process alone does nothing.

    Whatever goes wrong inside ends this process at once with its message and status: waiting for the others, as JAX
    does at the end of a program, would be waiting for ones that wait for this one.
    """
    check_group(group)
    if group.alone:
        yield
        return
    ending = _Ending()
    try:
        _connect(group)
        ending.say(_LOST, LOST_STATUS)
        yield
        import jax

        jax.distributed.shutdown()
    except BaseException as error:
        _leave(error, ending)


class _Ending:
    """JAX aborts the process when the coordinator says that another one is gone, or is gone itself. That is not the
    last word: this adds a line that says what to do, and a status that a script can act on."""

    def __init__(self):
        self._line, self._status = b"", cli.EXIT_USER_ERROR
        self.say(_NOT_ALL_CAME, cli.EXIT_USER_ERROR)
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)  # held: C keeps only its address
        _install(self._handler)

    def say(self, line: str, status: int) -> None:
        """Sets the line to print and the exit status for the case that JAX aborts."""
        self._line, self._status = line.encode() + b"\n", status

    def _aborted(self, number: int) -> None:
        with contextlib.suppress(OSError):
            os.write(2, self._line)
        os._exit(self._status)


def _install(handler) -> None:
    # Not by Python's signal module: it would run the handler after abort() returned, and abort() does not return.
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


def _connect(group: Group) -> None:
    import jax
    from jax.experimental import multihost_utils

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from the runner
    seconds: dict[str, Any] = {
        "initialization_timeout": group.connect_seconds,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
    }
    try:
        if group.detect:
            jax.distributed.initialize(**seconds)
        else:
            _check_coordinator(group)
            jax.distributed.initialize(
                group.coordinator,
                group.num_processes,
                group.process_id,
                cluster_detection_method="deactivate",
                **seconds,
            )
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:
        if group.detect:
            raise UserError(
                f"--distributed: no Slurm, Open MPI, TPU pod or Kubernetes job was found ({error}); give "
                "--coordinator, --num_processes and --process_id instead"
            ) from error
        raise UserError(f"--coordinator={group.coordinator}: {error}") from error
    start_devices()
    check_equal_devices([device.process_index for device in jax.devices()])
    before = threads()
    with _silent_stdout():
        multihost_utils.sync_global_devices("start")
    if jax.default_backend() == "cpu":
        give_way(threads() - before)


def check_equal_devices(processes: Iterable[int]) -> None:
    """UserError, the same in every process, unless each has as many devices; `processes` has an entry per device."""
    counts = sorted(collections.Counter(processes).items())
    if len({count for _, count in counts}) > 1:
        each = ", ".join(f"process {number} has {count}" for number, count in counts)
        raise UserError(
            f"the processes do not have as many devices each: {each}; give all of them the same --cpu_devices, or the "
            "same number of accelerators"
        )


def threads() -> set[int]:
    """Numbers of this process's threads; empty where the system does not tell (it is Linux that does)."""
    try:
        return set(map(int, os.listdir("/proc/self/task")))
    except OSError:
        return set()


def give_way(numbers: Iterable[int]) -> None:
    """Schedules these threads as batch work: when one wakes, it waits for its turn instead of taking the core.

    For the one in which gloo waits for the network. A part of a sum that arrives before this process asks for it stays
    where it is, and until then that thread is woken again and again: on the core that should come to the asking it
    takes a whole time slice first, many times as long as the sum. Which thread is gloo's cannot be asked, so all that
    were started with it are treated alike, those that compute among them. Their share of a core is as before.
    """
    for number in numbers:
        with contextlib.suppress(OSError):  # it has ended, or a container does not allow it
            if os.sched_getscheduler(number) == os.SCHED_OTHER:
                os.sched_setscheduler(number, os.SCHED_BATCH, os.sched_param(0))


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """For gloo, which says on stdout that it is connected; results are printed there."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _check_coordinator(group: Group) -> None:
    """Raises UserError where JAX would abort: a port that is taken, a coordinator that does not answer."""
    host, _, port = (group.coordinator or "").rpartition(":")
    if group.process_id == 0:
        family = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", int(port)))
        except OSError as error:
            raise UserError(f"--coordinator: port {port} cannot be used: {error.strerror}; choose another") from error
        return
    deadline = time.monotonic() + group.connect_seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--coordinator: {group.coordinator} does not answer after {group.connect_seconds} s "
                    f"({error.strerror or error}); is process 0 running there, and may this host connect to it?"
                ) from error
        time.sleep(0.2)


def _leave(error: BaseException, ending: _Ending) -> None:
    """Ends the process with the message and status of an error."""
    import jax

    raised = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    if raised and not isinstance(error, UserError) and any(word in str(error).lower() for word in _BROKEN):
        print(_LOST, file=sys.stderr)
        status = LOST_STATUS
    else:
        status = cli.report(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized() and jax.process_index() == 0:
        time.sleep(_PARTING_SECONDS)
    os._exit(status)
