"""Nobody is lost."""

from fedjax8.dropouts.base import Dropout


def none() -> Dropout:
    """The dropout of nobody."""
    return Dropout()


EXAMPLES = ({},)
