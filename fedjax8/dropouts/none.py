"""No dropouts: every client sends."""

from fedjax8.dropouts.base import Dropout


def none() -> Dropout:
    """The dropout without dropouts."""
    return Dropout()


EXAMPLES = ({},)
