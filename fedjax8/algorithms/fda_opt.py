"""FDA-Opt: sampled clients train unit after unit until their models have drifted apart, then the server's optimizer
takes a step.

"FDA-Opt: Communication-Efficient Federated Fine-Tuning of Language Models" (arXiv 2505.04535). Only its abstract was
read; the rest follows the authors' code.

    x_i = x;   repeat:  every client trains one unit (E epochs of the largest client's batches), sends a small state S_i
               until H(mean S_i) > theta_r, or this was unit number U, or the first round
    D = mean_i (x_i - x), unweighted;      x <- x + server_optimizer(-D)
    theta_{r+1} = (U / 2) / units_r * Var_r,     Var_r = variance of the final models about their mean

A round of fewer than U / 2 units so raises the next threshold, and one of more lowers it. With U = 1, or a threshold
held at minus infinity, it is FedOpt (Reddi et al. 2021). Cohorts are drawn as for every algorithm here, independently
from round to round; the authors hand out a shuffled list of all clients.

Traffic per client and round: the model down, an update up, and for every unit a state up and a byte down.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax8 import trees
from fedjax8.algorithms import lockstep
from fedjax8.algorithms.fda_steps import DECISION, MONITOR
from fedjax8.algorithms.fedavg import client_weight
from fedjax8.algorithms.lockstep import Worker
from fedjax8.algorithms.monitors.base import Monitor
from fedjax8.algorithms.monitors.sketch import sketch
from fedjax8.codecs.none import none
from fedjax8.given import checked
from fedjax8.local import check_not_kept, check_restarts
from fedjax8.types import (
    Algorithm,
    Array,
    Channel,
    ClientRows,
    Cohort,
    Contribution,
    Link,
    LocalTraining,
    PyTree,
    RoundOutput,
    Training,
    Variables,
    Way,
    each_once,
)

THRESHOLDS = ("adaptive", "fixed")


class FdaOptState(NamedTuple):
    """State of the server."""

    variables: Variables
    memory: PyTree
    """State of the server's optimizer."""
    threshold: Array
    """float32 theta of the next round."""


class Unit(NamedTuple):
    """State between two units of a round."""

    workers: PyTree
    """States of the cohort, `[c, ...]`, with a `Worker` for each client."""
    link: Link
    report: dict[str, Array]
    units: Array
    """int32: units done."""
    estimate: Array
    """float32 H after the last one."""


@checked
def fda_opt(
    local: LocalTraining,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    monitor: Monitor | None = None,
    max_units: int = 10,
    threshold: str = "adaptive",
    first_threshold: float = -jnp.inf,
) -> Algorithm:
    """FDA-Opt.

    Args:
      local: the clients' local training; one unit is its batch plan, with the same number of steps for all clients.
      server_optimizer: default `optax.sgd(1.0)`, with which the new model is the mean of the clients'.
      monitor: from `algorithms.monitors`; default `sketch(3, 500)`, the authors' sizes.
      max_units: U. The authors compare FedOpt of E epochs with U = 2 E + 8.
      threshold: `adaptive`, by the rule above, or `fixed` at `first_threshold`.
      first_threshold: theta of the first round; at minus infinity it has one unit.
    """
    if max_units < 1:
        raise ValueError(f"max_units must be at least 1, got {max_units}")
    if threshold not in THRESHOLDS:
        raise ValueError(f"threshold must be one of {', '.join(THRESHOLDS)}; got {threshold!r}")
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    monitor = sketch(3, 500) if monitor is None else monitor
    if monitor.sends is None or monitor.directed or monitor.exact:
        raise ValueError("fda_opt needs a monitor that measures drift without a direction: sketch, naive or gm")
    check_not_kept(local, "fda_opt begins every round with a new state")
    plain, state_of = none(), monitor.sends

    def init(variables: Variables) -> FdaOptState:
        check_restarts(local.optimizer.init(variables.params))
        return FdaOptState(variables, optimizer.init(variables.params), jnp.float32(first_threshold))

    def weight_of(worker: Worker, rows: ClientRows, steps: Array) -> Array:
        return jnp.where(worker.steps == steps, client_weight("uniform", rows.size), 0.0)

    def round_(link: Link, state: FdaOptState, cohort: Cohort, key) -> RoundOutput:
        down_key, client_key, up_key = jax.random.split(key, 3)
        tree = {"params": state.variables.params, "extra": {}, "state": state.variables.state}
        received, link = link.broadcast(down_key, tree, cohort)
        start = Variables(received["params"], received["state"])
        before = cohort.states
        steps = lockstep.steps_for_all(local, link, cohort, client_key)

        def train(shared, worker, rows, key):
            units, threshold = shared
            nothing = lockstep.no_report(local, start, rows)
            training = Training(worker.variables, worker.optimizer, nothing, start.params)
            done = local.advance(training, rows, key, units * steps, jnp.where(rows.size > 0, steps, 0))
            new = Worker(done.variables, done.optimizer, worker.steps + 1)
            sent = state_of(trees.subtract(new.variables.params, start.params), (), threshold)
            report = lockstep.nan_if_unusable(done.report, done.variables)
            return Contribution(sent, weight_of(new, rows, units + 1), new, report)

        def unit(at: Unit) -> Unit:
            reduced, workers, link = at.link.map_clients(
                train,
                (at.units, state.threshold),
                cohort._replace(states=at.workers),
                client_key,
                MONITOR,
                plain,
                monitor.watch,
                steps=steps,
            )
            estimate = jnp.float32(monitor.estimate(reduced, at.units + 1))
            more = (estimate <= state.threshold) & (at.units + 1 < max_units)
            _, link = link.broadcast(down_key, {"more": more.astype(jnp.uint8)}, cohort, DECISION, plain)
            return Unit(workers, link, trees.add(at.report, reduced.report), at.units + 1, estimate)

        some_rows = ClientRows(link.pool, cohort.start[0], cohort.size[0])
        report = lockstep.no_report(local, start, some_rows) | {"excluded": jnp.int32(0)}
        workers = before | {"algorithm": lockstep.on_all(cohort.ids, lockstep.start_worker(local, start))}
        at = Unit(workers, link, report, jnp.int32(0), jnp.float32(-jnp.inf))
        again = lambda at: (at.units == 0) | ((at.units < max_units) & (at.estimate <= state.threshold))
        at = jax.lax.while_loop(again, unit, at)

        def send(shared, worker, rows, _):
            update = trees.subtract(worker.variables.params, start.params)
            sent = {"update": update, "state": worker.variables.state}
            return Contribution(sent, weight_of(worker, rows, shared), worker, {})

        cohort = cohort._replace(states=at.workers)
        of_drift = lambda shared, worker: {"model": trees.subtract(worker.variables.params, start.params)}
        of_weight = lambda shared, worker, rows: weight_of(worker, rows, shared)
        variance = lockstep.variances(at.link, cohort, up_key, at.units, of_drift, of_weight)["model"]
        reduced, states, link = at.link.map_clients(send, at.units, cohort, client_key, steps=0)

        gradient = trees.scale(-1.0, reduced.mean["update"])
        step, memory = optimizer.update(gradient, state.memory, state.variables.params)
        params = local.model.project(optax.apply_updates(state.variables.params, step))
        theta = state.threshold
        if threshold == "adaptive":
            theta = (max_units / 2) / at.units.astype(jnp.float32) * variance
        new = FdaOptState(Variables(params, reduced.mean["state"]), memory, theta)
        new = trees.select(reduced.weight > 0, new, state)
        report = at.report | {"clients": reduced.clients, "units": at.units, "variance": variance}
        report |= {"excluded": at.report["excluded"] + reduced.report["excluded"]}
        report |= {"variance_estimate": at.estimate, "threshold": new.threshold}
        return RoundOutput(new, before | {"uplink": states["uplink"]}, link, report)

    def ways(channels: Sequence[Channel], steps: int, clients: int) -> Sequence[Way]:
        """Messages of one unit and of U units."""
        fewest, most = each_once(channels, steps, clients)
        return fewest, {c: max_units if c.name in (MONITOR, DECISION) else n for c, n in most.items()}

    return Algorithm(local, init, lambda variables: (), round_, lambda state: state.variables, ways=ways)


EXAMPLES = ({"max_units": 1}, {"max_units": 3, "server_optimizer": optax.sgd(1.0, momentum=0.9)})
