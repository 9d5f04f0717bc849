"""Times of a round's clients before it runs: when each has received, trained and sent, and what the round waits for.

    received_i = n_down latency_i + bytes down / B_down
    trained_i  = received_i + step_seconds_i steps_i
    sent_i     = trained_i + n_up latency_i + bytes up / B_up

By the system model and the sizes of messages, as in `engine.foretelling`; transfers share the server's link where it is
limited. What only the round itself decides is not in it: parts that a client leaves out of a message, random dropouts,
and the order of several messages within a round, which are here one down, the steps, and one up.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax8.data.batches import num_steps
from fedjax8.engine.foretelling import traffic
from fedjax8.engine.simulation import Simulation
from fedjax8.exchange.mixing import arrivals
from fedjax8.exchange.transfers import transfers
from fedjax8.executors.loop import loop
from fedjax8.systems import Speeds

ROUNDS = 3
"""Rounds of a timeline."""
SHOWN = 40
"""Most clients of a round in it."""
LOOKED_AT = 256
"""Rounds whose times a forecast looks at; a longer run is extrapolated."""
STEPS, DOWNLINK, UPLINK, LATENCY = "local steps", "downlink", "uplink", "latency"
SERVER, DEADLINE, BETWEEN = "the server's link", "the deadline", "links between workers"


class RoundTimes(NamedTuple):
    """Times of the clients of one round, in seconds from its start; float64 `[n]` each."""

    ids: np.ndarray
    """int64 `[n]`."""
    received: np.ndarray
    trained: np.ndarray
    sent: np.ndarray
    late: np.ndarray
    """bool `[n]`: sent after the deadline."""
    lost: np.ndarray
    """bool `[n]`: asked, but nobody waits for them, as `Drawn.lost`; they only receive."""
    seconds: float
    """The end of the round."""
    limits: Mapping[str, float]
    """Seconds of it by what the last client is at; all of it `DEADLINE` where the round lasts until the deadline."""


class Simulated(NamedTuple):
    """Simulated time of a run, before it is run."""

    least: float
    """Seconds of a round, over the rounds looked at."""
    median: float
    most: float
    run: float
    limits: Mapping[str, float]
    """Shares of the time of the rounds looked at, largest first."""
    exact: bool
    """Whether all rounds were looked at, as their clients will be drawn."""


def foreseen(simulation: Simulation, rounds: int = LOOKED_AT) -> Simulated | None:
    """The simulated time of so many rounds; None for a run without a clock."""
    if not simulation.system.timed or not rounds:
        return None
    looked_at = min(rounds, LOOKED_AT)
    found = [round_times(simulation, number) for number in range(looked_at)]
    ends = np.array([times.seconds for times in found])
    sums: dict[str, float] = {}
    for times in found:
        for name, seconds in times.limits.items():
            sums[name] = sums.get(name, 0.0) + seconds
    whole = sum(sums.values()) or 1.0
    shares = {name: sums[name] / whole for name in sorted(sums, key=lambda name: -sums[name])}
    exact = looked_at == rounds and not simulation.participation.reads_state
    spread = float(ends.min()), float(np.median(ends)), float(ends.max())
    return Simulated(*spread, float(ends.mean()) * rounds, shares, exact)


def timeline(simulation: Simulation) -> list[dict[str, Any]]:
    """The first `ROUNDS` rounds for `about.json`, in each up to `SHOWN` clients, evenly spaced from the first to the
    last to be done. None of a run without a clock, whose rounds do not wait for their clients, or whose clients are
    known only as it goes on."""
    if not simulation.system.timed or simulation.participation.reads_state or simulation.participation.versions:
        return []
    return [_shown(number + 1, round_times(simulation, number)) for number in range(ROUNDS)]


def round_times(simulation: Simulation, number: int) -> RoundTimes:
    """The times of the round after `number` rounds, which needs a clock."""
    system, drawn = simulation.system, simulation.participants.drawn(number)
    assert system.speeds is not None
    speeds = system.speeds(simulation.seed, number, drawn.ids)
    sizes: Any = simulation.data.windows(drawn.ids)[1]
    of_sizes = simulation.algorithm.steps
    steps = np.asarray(num_steps(simulation.plan, sizes) if of_sizes is None else of_sizes(sizes), float)
    times_down, times_up, down, up = traffic(simulation.ways, int(np.max(steps, initial=0)))
    deadline, until = simulation.algorithm.deadline, simulation.algorithm.trains_until
    latency, works = speeds.latency, ~drawn.lost
    asked = np.ones(len(drawn.ids), bool)
    own_down, own_up = down / speeds.down_bandwidth, np.where(works, up / speeds.up_bandwidth, 0.0)
    received = _ends(times_down * latency, down, speeds.down_bandwidth, asked, system.server.down_bandwidth)
    training = np.where(works, speeds.step_seconds * steps, 0.0)
    training = np.minimum(training, np.maximum(until - received, 0.0))
    trained = received + training
    begin = trained + np.where(works, times_up * latency, 0.0)
    sent = _ends(begin, up, speeds.up_bandwidth, works, system.server.up_bandwidth)
    late = works & (sent > deadline)
    waited = works & ~late
    seconds = float(np.max(sent[waited] if waited.any() else received, initial=0.0))
    limits: dict[str, float]
    if simulation.algorithm.graph:
        sent = _between(simulation, number, drawn.ids, speeds, trained)
        seconds = float(np.max(sent, initial=0.0))
        last = int(np.argmax(sent))
        limits = {STEPS: float(training[last]), BETWEEN: seconds - float(training[last])}
    elif drawn.schedule is not None:  # the round waits for nobody
        limits, seconds = {}, drawn.schedule.seconds
    elif late.any():
        limits, seconds = {DEADLINE: deadline}, deadline
    elif waited.any():
        last = int(np.argmax(np.where(waited, sent, -1.0)))
        alone = {STEPS: training, DOWNLINK: own_down, UPLINK: own_up, LATENCY: (times_down + times_up) * latency}
        limits = {name: float(of_client[last]) for name, of_client in alone.items()}
        limits[SERVER] = max(0.0, seconds - sum(limits.values()))
    else:
        limits = {DOWNLINK: seconds}
    return RoundTimes(drawn.ids, received, trained, sent, late, drawn.lost, seconds, limits)


def _between(simulation: Simulation, number: int, ids: np.ndarray, speeds: Speeds, trained: np.ndarray) -> np.ndarray:
    """float64 `[n]`: when each worker has the trees of all whom it hears."""
    graph = simulation.algorithm.graph
    assert graph is not None
    size = sum(found.channel.message_bytes for found in simulation.discover() if found.channel.direction == "peer")
    of = trained, speeds.latency, np.full(len(ids), size), speeds.up_bandwidth, speeds.down_bandwidth
    sent = *(jnp.asarray(x, jnp.float32) for x in of), jnp.ones(len(ids), bool)
    return np.asarray(arrivals(loop(), graph(number, simulation.num_clients), jnp.asarray(ids), sent)[0], float)


def _ends(start: np.ndarray, size: int, bandwidth: np.ndarray, active: np.ndarray, capacity: float) -> np.ndarray:
    """float64 `[n]`: ends of transfers, in exact sums unless the server's link is shared."""
    if capacity == math.inf:
        return np.where(active, start + size / bandwidth, start)
    begin, sizes, rate = (jnp.asarray(x, jnp.float32) for x in (start, np.full(len(start), size), bandwidth))
    return np.asarray(transfers(begin, sizes, rate, jnp.asarray(active), capacity)[0], float)


def _shown(number: int, times: RoundTimes) -> dict[str, Any]:
    order = np.argsort(times.sent, kind="stable")
    kept = order[np.linspace(0, len(order) - 1, min(len(order), SHOWN)).astype(int)]
    fates = np.where(times.lost, "lost", np.where(times.late, "late", "used"))
    moments = {name: getattr(times, name)[kept] for name in ("received", "trained", "sent")}
    return {
        "round": number,
        "seconds": _short(times.seconds),
        "asked": len(times.ids),
        "clients": times.ids[kept].tolist(),
        **{name: [_short(value) for value in values] for name, values in moments.items()},
        "fates": fates[kept].tolist(),
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")
