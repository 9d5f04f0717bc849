"""The next call, prepared in a thread while the present one runs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Prepared = TypeVar("Prepared")


class Prefetch(Generic[Prepared]):
    """Results of `prepare(first round, rounds)`, begun ahead of time; a result for another call than the one that comes
    is dropped. With `ahead` false nothing is prefetched, since its arguments are not known before."""

    def __init__(self, prepare: Callable[..., Prepared], ahead: bool = True):
        self._prepare, self._ahead = prepare, ahead
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="fedjax8-prefetch")
        self._next: tuple[tuple[int, int], Future[Prepared]] | None = None

    def start(self, first: int, count: int) -> None:
        """Begins to prepare `count` rounds from round `first` on."""
        if self._ahead:
            self._next = (first, count), self._threads.submit(self._prepare, first, count)

    def take(self, first: int, count: int, *now: Any) -> Prepared:
        """The result for these rounds, prefetched or else made now by `prepare(first, count, *now)`."""
        begun, self._next = self._next, None
        if begun is None:
            return self._prepare(first, count, *now)
        wanted, made = begun
        if wanted == (first, count):
            return made.result()
        made.cancel()
        return self._prepare(first, count, *now)
