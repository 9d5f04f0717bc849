"""Selection of the clients of a round. One file each; see `base.Participation`.

    uniform          `cohort_size` clients without replacement, the default
    poisson          every client on its own, `cohort_size` in expectation
    weighted         by their numbers of rows, or by given weights
    cyclic           by turns, in an order that stays the same
    power_of_choice  the largest losses among some candidates
    overselect       more are asked than are waited for
    buffered         whoever arrives, a buffer at a time, without waiting for the others
    asynchronous     whoever arrives, one at a time
    stages           the fastest, twice as many in every stage
    available        `cohort_size` of those who are there as the round begins
    walk             those who hold a walking token

Draws are NumPy on the host, a function of (seed, round) and of public facts about the clients, and of the present model
or the log where they say so (`reads_state`). Planning, forecasts, program shapes and privacy accounting all ask one
object, `base.Participants`, so that an epsilon is always of the law that drew the clients.
"""

from fedjax8.participation.asynchronous import asynchronous
from fedjax8.participation.available import available
from fedjax8.participation.base import (
    EVERYONE,
    LAWS,
    POISSON,
    UNKNOWN,
    WITHOUT_REPLACEMENT,
    Ask,
    Drawn,
    Numbers,
    Participants,
    Participation,
    Phases,
    Present,
    exactly,
)
from fedjax8.participation.buffered import buffered
from fedjax8.participation.cyclic import cyclic
from fedjax8.participation.overselect import overselect
from fedjax8.participation.poisson import poisson
from fedjax8.participation.power_of_choice import power_of_choice
from fedjax8.participation.stages import stages
from fedjax8.participation.uniform import sample_cohort, uniform
from fedjax8.participation.walk import walk
from fedjax8.participation.weighted import weighted

__all__ = [
    "EVERYONE",
    "LAWS",
    "POISSON",
    "UNKNOWN",
    "WITHOUT_REPLACEMENT",
    "Ask",
    "Drawn",
    "Numbers",
    "Participants",
    "Participation",
    "Phases",
    "Present",
    "asynchronous",
    "available",
    "buffered",
    "cyclic",
    "exactly",
    "overselect",
    "poisson",
    "power_of_choice",
    "sample_cohort",
    "stages",
    "uniform",
    "walk",
    "weighted",
]
