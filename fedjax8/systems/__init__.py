"""System models: how long clients take. One file each; see `base.SystemModel`.

    none         a run has no clock, the default
    same         every device and every link is the same
    lognormal    log-normal devices and links
    classes      named kinds of devices and links with shares: phones on LTE, gateways, data centers
    trace        measured clients from a table (`fedscale` writes one from FedScale's traces)
    shared_link  the clients of another, and a server whose link they share

A client's seconds are those of its messages, by their bytes in this round, and of its local steps; the exchanges of a
round add them up (`exchange.clock`).
"""

from fedjax8.systems.base import ServerLink, Speeds, SystemModel
from fedjax8.systems.classes import classes
from fedjax8.systems.lognormal import lognormal
from fedjax8.systems.none import none
from fedjax8.systems.same import same
from fedjax8.systems.shared_link import shared_link
from fedjax8.systems.trace import trace

__all__ = ["ServerLink", "Speeds", "SystemModel", "classes", "lognormal", "none", "same", "shared_link", "trace"]
