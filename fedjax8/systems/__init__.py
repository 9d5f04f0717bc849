"""System models: how long clients take. One file each; see `base.SystemModel`.

    none        a run has no clock, the default
    same        every device and every link is the same
    lognormal   log-normal devices and links

A client's seconds are those of its messages, by their bytes in this round, and of its local steps; the exchanges of a
round add them up (`exchange.clock`).
"""

from fedjax8.systems.base import ServerLink, Speeds, SystemModel
from fedjax8.systems.lognormal import lognormal
from fedjax8.systems.none import none
from fedjax8.systems.same import same

__all__ = ["ServerLink", "Speeds", "SystemModel", "lognormal", "none", "same"]
