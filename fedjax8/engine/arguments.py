"""Checks of the arguments of `simulate`, by themselves and together."""

import math
from typing import TYPE_CHECKING

import numpy as np

from fedjax8.data.federated import FederatedData
from fedjax8.data.held_out import owned_once
from fedjax8.errors import UserError
from fedjax8.participation import Participation
from fedjax8.systems import ServerLink, SystemModel
from fedjax8.types import Algorithm

if TYPE_CHECKING:
    from fedjax8.engine.simulation import Simulation


def check_run(
    algorithm: Algorithm,
    data: FederatedData,
    seed: int,
    rounds_per_call: int | None,
    feed_mode: str,
) -> None:
    """Raises UserError for arguments of `simulate` that are impossible, by themselves or together."""
    num_clients = data.num_clients
    if seed < 0 or (rounds_per_call is not None and rounds_per_call < 1):
        raise UserError(
            f"seed is {seed} and rounds_per_call {rounds_per_call}; a seed must be at least 0, and rounds_per_call at "
            "least 1 or None"
        )
    if algorithm.pooled and (feed_mode == "streamed" or not owned_once(data)):
        raise UserError(
            "this algorithm trains on the rows of all clients at once: they must be resident (feed_mode is "
            f"{feed_mode!r}), and every row be in the window of one client"
        )
    if not data.num_positions or not np.any(data.sizes):
        raise UserError(f"none of the {num_clients} clients has any data")


def check_time(algorithm: Algorithm, system: SystemModel, participation: Participation) -> None:
    """Raises UserError where a part of a run reads its clients' time and there is no clock, or where rounds that do not
    wait for their clients meet a part that they cannot go with."""
    if participation.versions:
        _check_unwaited(algorithm, system)
    elif system.available is not None and not participation.reads_available:
        raise UserError(
            "the system model says when clients are available, which this participation does not ask: clients would be "
            "drawn that are not there. Use --config.participation.name=available, buffered or asynchronous, or leave "
            "the column `available` out of the trace"
        )
    if participation.reads_available and system.available is None:
        raise UserError(
            "this participation asks when clients are available, and no system model of this run says so; use "
            "--config.system.name=trace with a column `available`, or --config.participation.name=uniform"
        )
    if algorithm.graph and algorithm.deadline < math.inf:
        raise UserError(
            "workers on a graph wait for their neighbors, and no server says when they are late; use "
            "--config.dropout.name=random or none"
        )
    if algorithm.graph and system.server != ServerLink():
        raise UserError(
            "workers on a graph send to each other, so that the link of a server changes nothing; use a system model "
            "without one, such as --config.system.name=lognormal"
        )
    if algorithm.pooled and system.timed:
        raise UserError(
            "this algorithm trains on all rows in one place, without a client's device or link whose time could be "
            "simulated; use --config.system.name=none"
        )
    if algorithm.timed and not system.timed:
        raise UserError(
            "a deadline needs to know how long clients take, and this run has no clock; choose a system model, such as "
            "--config.system.name=lognormal, in Python simulate(..., system=systems.lognormal())"
        )


def check_beside(made: "Simulation", beside: "Simulation") -> None:
    """Raises UserError where a simulation cannot use the programs and rows of the other."""
    if any(beside.programs.columns.get(name) is not column for name, column in made.data.columns.items()):
        raise UserError("runs side by side must have the same columns, not copies of them; pass the same arrays to all")
    if made.system.server != beside.system.server:
        raise UserError("runs side by side must have the same server's link, system.server; run these one by one")


def _check_unwaited(algorithm: Algorithm, system: SystemModel) -> None:
    """Raises UserError for what asynchronous rounds cannot go with."""
    if not system.timed:
        raise UserError(
            "rounds that do not wait for their clients need to know how long these take, and this run has no clock; "
            "choose a system model, such as --config.system.name=lognormal"
        )
    if not algorithm.ages:
        raise UserError(
            "this algorithm needs clients that start from the server's present model, which asynchronous rounds do not "
            "have; use --config.participation.name=uniform, or another algorithm, such as fedavg or fedopt"
        )
    if algorithm.timed:
        raise UserError(
            "asynchronous rounds wait for nobody, so that a deadline has no meaning; use --config.dropout.name=none"
        )
    if system.server != ServerLink():
        raise UserError(
            "asynchronous rounds are planned by each client's own link, and a server's link that clients share is not "
            "supported there; use a system model without one"
        )
