"""No clock: a run counts bytes and rounds, and tells no seconds."""

from fedjax8.systems.base import SystemModel


def none() -> SystemModel:
    """The system model of a run without time."""
    return SystemModel()


EXAMPLES = ({},)
