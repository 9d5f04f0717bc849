"""Clients that are lost: they receive the model, and nothing comes back. One file each; see `Dropout`.

    random     each with the same probability
    deadline   those whose message arrives after the deadline, by a model of their time

Lost clients are counted (`dropped`). What they received is in the downlink bytes. What they did not send in time is in
no uplink bytes; where a round has several messages, those that arrived before a client was late count. Lost clients
keep the state they had before the round. The server averages over those that
are left, with weights that sum to 1. Under `random` these are a uniform sample of the cohort, so that the mean is
unbiased as that of a smaller cohort is. Under `deadline` the same clients are lost again and again, and the mean leans
toward fast clients with few examples: that is the bias of such systems, and is not corrected.
"""

from fedjax8.dropouts._round import with_dropout
from fedjax8.dropouts.base import Dropout, Speeds
from fedjax8.dropouts.deadline import deadline
from fedjax8.dropouts.none import none
from fedjax8.dropouts.random import random

__all__ = ["Dropout", "Speeds", "deadline", "none", "random", "with_dropout"]
