"""The type of refinements: a server's own step on an averaged model, before anyone receives it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax8.types import Key, PyTree


class Refinement(NamedTuple):
    """A server's own step on an averaged model, before anyone receives it."""

    watch: Callable[[PyTree], PyTree]
    """A client's decoded params to the values in them whose smallest and largest over clients the step needs."""
    step: Callable[[Key, PyTree, PyTree, PyTree], tuple[PyTree, dict[str, Any]]]
    """`(key, averaged params, lowest, highest) -> (params, report)`."""
