"""Callbacks: decisions of a run by its own metrics, and files that it keeps. One file each; see `Callback`.

    early_stopping    ends a run whose metric stalls
    target            ends a run whose metric reaches a value
    best_checkpoint   keeps the model that was best so far
    plateau           lowers the clients' step size where a metric stalls

Process 0 decides and sends the decision to the others. The memory of a callback is part of checkpoints, so that a
resumed run decides alike.
"""

from fedjax8.callbacks.base import Callback, Decision, Moment
from fedjax8.callbacks.best_checkpoint import best_checkpoint, read_best
from fedjax8.callbacks.early_stopping import early_stopping
from fedjax8.callbacks.plateau import plateau
from fedjax8.callbacks.target import target

__all__ = ["Callback", "Decision", "Moment", "best_checkpoint", "early_stopping", "plateau", "read_best", "target"]
