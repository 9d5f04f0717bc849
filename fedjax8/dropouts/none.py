"""Nobody is lost."""

from fedjax8.types import Dropout


def none() -> Dropout:
    """The dropout of nobody."""
    return Dropout()


EXAMPLES = ({},)
