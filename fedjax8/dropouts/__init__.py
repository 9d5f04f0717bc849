"""Dropouts: clients that receive the model and send nothing back. One file each; see `Dropout`.

    random     each with the same probability
    deadline   stragglers, whose message arrives after the deadline, by the system model

Dropouts are counted (`dropped`). The messages they received are in the downlink bytes; those they did not send in time
are in no uplink bytes; where a round has several messages, those that arrived before a client was late count. Dropouts
keep the state they had before the round. The server averages over the other clients, with weights that sum to 1. Under
`random` these are a uniform sample of the cohort, so that the mean is unbiased as that of a smaller cohort is. Under
`deadline` the same clients drop out again and again, and the mean leans toward fast clients with few examples: the
known bias of such systems, which is not corrected.
"""

from fedjax8.dropouts._round import with_dropout
from fedjax8.dropouts.base import Dropout
from fedjax8.dropouts.deadline import deadline
from fedjax8.dropouts.none import none
from fedjax8.dropouts.random import random

__all__ = ["Dropout", "deadline", "none", "random", "with_dropout"]
