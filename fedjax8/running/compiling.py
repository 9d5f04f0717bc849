"""Seconds that JAX spends on tracing, lowering and compiling, by its own events."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import jax

EVENTS = "/jax/core/compile/"
"""Prefix of the events of which each names a duration that ends with it."""

LOWERED, COMPILED = f"{EVENTS}jaxpr_to_mlir_module_duration", f"{EVENTS}backend_compile_duration"


class CompileSeconds:
    """Seconds spent on tracing, lowering and compiling in the thread that made it. Stages inside others (a function
    traced while another is) count once.

    `says(True)` is called where XLA begins to compile, `says(False)` where it ends.
    """

    def __init__(self, says: Callable[[bool], None] = lambda _: None, clock: Callable[[], float] = time.monotonic):
        self._says, self._clock, self._thread, self._taken = says, clock, threading.get_ident(), 0.0
        self._spans: list[tuple[float, float]] = []

    def heard(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Takes in an event of JAX that has just ended."""
        if not event.startswith(EVENTS) or threading.get_ident() != self._thread:
            return
        end = self._clock()
        begin = end - duration_secs
        while self._spans and self._spans[-1][0] >= begin:
            self._spans.pop()
        self._spans.append((begin, end))
        if event in (LOWERED, COMPILED):
            self._says(event == LOWERED)

    @property
    def total(self) -> float:
        """Seconds so far."""
        return sum(end - begin for begin, end in self._spans)

    def take(self) -> float:
        """Seconds since the last call of this."""
        taken, self._taken = self._taken, self.total
        return self._taken - taken


@contextlib.contextmanager
def compile_seconds(says: Callable[[bool], None] = lambda _: None) -> Iterator[CompileSeconds]:
    """Yields the seconds spent on compilation while the context is open; `says` as in `CompileSeconds`."""
    seconds = CompileSeconds(says)
    jax.monitoring.register_event_duration_secs_listener(seconds.heard)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(seconds.heard)
