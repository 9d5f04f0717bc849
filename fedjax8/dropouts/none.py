"""Nobody is lost."""

from fedjax8.dropouts._base import Dropout


def none() -> Dropout:
    """The dropout of nobody."""
    return Dropout()


EXAMPLES = ({},)
