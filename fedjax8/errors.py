"""Mistakes of the user: one as an exception, and a collector for all of them.

Command lines print each mistake as one line on stderr and exit with status 2; everywhere else it is an ordinary
`ValueError`.

A config is built step by step, and a step that fails must not hide mistakes in the others:

    with Mistakes() as mistakes:
        codec = mistakes.attempt(make_codec, settings)      FAILED if that raises UserError
        model = mistakes.attempt(make_model, other)
        run = mistakes.attempt(simulate, model, codec)      not called if an argument has FAILED
    return run                                              not reached if there was a mistake
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class UserError(ValueError):
    """A mistake of the user, in one line: the given value, the allowed ones, and advice."""

    @property
    def mistakes(self) -> tuple[str, ...]:
        """Each mistake as a line of its own."""
        return (" ".join(str(self).split()),)


class UserErrors(UserError):
    """Several mistakes, found together.

    >>> print(UserErrors(["config.rounds is 0", "config.seed is -1"]))
    2 mistakes:
      1. config.rounds is 0
      2. config.seed is -1
    """

    def __init__(self, mistakes: Sequence[str]):
        super().__init__("\n".join([f"{len(mistakes)} mistakes:", *numbered(mistakes)]))
        self._mistakes = tuple(mistakes)

    @property
    def mistakes(self) -> tuple[str, ...]:
        """Each mistake as a line of its own."""
        return self._mistakes


def numbered(mistakes: Sequence[str]) -> list[str]:
    """Lines of a list, numbered from 1."""
    return [f"{number:3d}. {mistake}" for number, mistake in enumerate(mistakes, 1)]


class _Failed:
    """Placeholder of a value that could not be made; so are its attributes."""

    def __getattr__(self, name: str) -> "_Failed":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __repr__(self) -> str:
        return "FAILED"


FAILED: Any = _Failed()
"""The result of an attempt that failed, or was not made because one of its arguments had failed."""


class Mistakes:
    """Collects the mistakes in the block that it opens, and raises all at the block's end.

    One mistake is raised as a `UserError`, several as `UserErrors`. Another exception in the block takes precedence.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def attempt(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`f(*args, **kwargs)`, or FAILED: if it raises `UserError`, or if it or an argument has FAILED."""
        if any(value is FAILED for value in (f, *args, *kwargs.values())):
            return FAILED
        try:
            return f(*args, **kwargs)
        except UserError as error:
            self.note(error)
            return FAILED

    def note(self, error: UserError) -> None:
        """Takes in the mistakes of an error, unless they are known already."""
        self.found += [mistake for mistake in error.mistakes if mistake not in self.found]

    def __enter__(self) -> "Mistakes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self.found:
            raise UserError(self.found[0]) if len(self.found) == 1 else UserErrors(self.found)


@contextlib.contextmanager
def mistakes_of(path: str) -> Iterator[None]:
    """Turns errors of factories in the block into the user's mistakes at `path`, unless they name a path already.

    ValueError and TypeError become `UserError`.
    """
    try:
        yield
    except UserErrors as error:
        raise UserErrors([_at(path, mistake) for mistake in error.mistakes]) from error
    except (ValueError, TypeError) as error:
        raise UserError(_at(path, str(error))) from error


def _at(path: str, mistake: str) -> str:
    return mistake if mistake.startswith(path) else f"{path}: {mistake}"
