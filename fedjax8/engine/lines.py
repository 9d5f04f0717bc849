"""Lines of the log, from the values that a round leaves on the devices."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax8.engine.call import RoundOutcome
from fedjax8.engine.planning import Plan
from fedjax8.exchange.clock import Elapsed
from fedjax8.exchange.ledger import Ledger
from fedjax8.exchange.left_out import named
from fedjax8.participation.base import Participants
from fedjax8.types import Algorithm, Ratio


def round_line(number: int, ledger: Ledger, report: Mapping[str, Any]) -> dict[str, Any]:
    """One round's metrics: means of the clients' `train_*` sums, cumulative bytes, reports of algorithm and codecs.

    A `Ratio` becomes a number; one with nothing to divide by is left out.
    """
    examples = float(report.get("train_examples", 0)) or math.nan  # nobody trained: no mean, and not a loss of 0
    metrics: dict[str, Any] = {"round": number}
    for name, value in sorted(report.items()):
        if isinstance(value, Ratio):
            metrics |= {name: float(value.part) / float(value.whole)} if value.whole else {}
        elif name.startswith("train_") and name != "train_examples":
            metrics[name] = float(value) / examples
        elif name != "train_examples":
            metrics[name] = np.asarray(value).tolist()
    metrics["uplink_bytes"] = ledger.uplink_bytes
    metrics["downlink_bytes"] = ledger.downlink_bytes
    metrics |= ledger.others | ledger.by_name()
    return metrics


def call_lines(
    algorithm: Algorithm, participants: Participants, plan: Plan, outcomes: RoundOutcome, ledger: Ledger
) -> tuple[list[dict[str, Any]], Ledger]:
    """(a line a round of a call, the ledger after it), from the outcomes of its rounds, leaves `[R, ...]`."""
    lines = []
    for index in range(plan.rounds):
        of_round = _planned(jax.tree.map(lambda x, i=index: x[i], outcomes), plan, index)
        ledger = ledger.add(of_round.sent | participants.reports(plan.asked[index]), of_round.elapsed)
        lines.append(_call_line(algorithm, participants, plan, index, of_round, ledger))
        ledger = ledger.remember(participants.participation.remember, lines[-1])
    return lines, ledger


def _planned(outcome: RoundOutcome, plan: Plan, index: int) -> RoundOutcome:
    """The outcome of a round, whose time is that of the plan where rounds do not wait for their clients, and has the
    wait for enough of them."""
    if not isinstance(outcome.elapsed, Elapsed):
        return outcome
    if not plan.schedules:
        whole: Any = float(outcome.elapsed.seconds) + plan.waited[index]
        return outcome._replace(elapsed=outcome.elapsed._replace(seconds=whole))
    seconds, peak = plan.schedules[index]
    planned: dict[str, Any] = {"seconds": seconds, "peak_rate": peak, "waiting": 0.0}  # on its way a client is busy
    return outcome._replace(elapsed=outcome.elapsed._replace(**planned))


def _call_line(
    algorithm: Algorithm, participants: Participants, plan: Plan, index: int, outcome: RoundOutcome, ledger: Ledger
) -> dict[str, Any]:
    """The metrics of round `index` of a call, from its outcome and the ledger after it."""
    number = plan.first + index + 1
    facts: dict[str, Any] = {"padding": plan.padding[index]}
    facts |= {"cohort": plan.asked[index]} if participants.varies else {}
    facts |= algorithm.account(ledger.sent) | algorithm.privacy(number)
    excluded = named(np.asarray(outcome.left_out), participants.num_clients)
    facts |= {"excluded_clients": excluded} if excluded else {}
    facts |= {"rejected": 1} if outcome.rejected else {}
    if plan.schedules:
        there = plan.ids[:, index] < participants.num_clients
        counts = np.bincount(plan.ages[:, index][there])
        facts |= {"staleness": {str(age): int(n) for age, n in enumerate(counts) if n}}
        facts |= {"stale": int(np.count_nonzero(there & (plan.factors[:, index] <= 0)))}
    if isinstance(outcome.elapsed, Elapsed):
        facts |= {"waiting_share": outcome.elapsed.waiting, "peak_rate": outcome.elapsed.peak_rate}
        facts |= {"simulated_seconds": ledger.seconds, "wasted_bytes": ledger.wasted_bytes}
    if not isinstance(outcome.squared_update, tuple):
        facts |= {"squared_update": outcome.squared_update}
    return round_line(number, ledger, outcome.report | outcome.measured | facts)
