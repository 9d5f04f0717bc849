"""The steps of `fda`: functions `Loop -> Loop`."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms import lockstep
from fedjax8.algorithms.fedavg import client_weight
from fedjax8.algorithms.lockstep import Units, Worker
from fedjax8.algorithms.monitors import _direction as directions
from fedjax8.algorithms.monitors.base import Monitor
from fedjax8.codecs.none import none
from fedjax8.types import (
    MODEL,
    Array,
    ClientRows,
    Cohort,
    Contribution,
    Key,
    Link,
    LocalTraining,
    Partial,
    PyTree,
    Reduced,
    Variables,
)

MONITOR, DECISION = "monitor", "decision"
"""Names of the messages beside the model."""


class FdaState(NamedTuple):
    """State that the server and every worker know."""

    common: Variables
    """w_0: the model of all workers after the last synchronization."""
    mean: Variables
    """Average of the workers' models as the last round left them; evaluated, and disturbs nobody."""
    direction: dict[str, PyTree]
    """Unit vector xi of each unit, or an empty dict."""
    threshold: Array
    """float32 Theta."""
    steps: Array
    """int32: steps done."""
    syncs: Array
    """int32: synchronizations done; of layers, all of them."""


class Loop(NamedTuple):
    """State between two steps of a round."""

    server: FdaState
    workers: PyTree
    """States of the cohort, `[c, ...]`."""
    link: Link
    report: dict[str, Array]
    """Sums over the steps."""
    clients: Array
    trace: dict[str, Array]
    """float32 `[S]` of each step, where steps are recorded."""


class Synchronize(Protocol):
    """The synchronization of one unit."""

    def __call__(self, loop: Loop, cohort: Cohort, key: Key, name: str) -> Loop:
        """The loop after the unit `name` of all models was averaged; unchanged if no worker has weight."""


class FdaSteps(NamedTuple):
    """The functions that make up a round of `fda`."""

    plain: Callable[[Loop, Cohort, Key], Loop]
    """A step of all workers without a check."""
    monitored: Callable[[Loop, Cohort, Key], tuple[Loop, Reduced | None]]
    """A step after which every worker sends its small state, if the monitor has one."""
    estimates: Callable[[Loop, Cohort, Key, Reduced | None], tuple[dict[str, Array], dict[str, Array]]]
    """H of each unit, and the true variance of each if it is wanted."""
    decide: Callable[[Loop, Cohort, Key, dict[str, Array]], tuple[Loop, Array]]
    """From H of each unit, bool `[units]`: which are to be averaged. Every worker receives the decision."""
    synchronize: Synchronize
    """Averages one unit of all models."""
    caught_up: Callable[[Loop, Array], Loop]
    """The loop after a check with these units `due`: workers that had missed a step of them count there again."""
    mean: Callable[[Loop, Cohort, Key, Array], Variables]
    """Average of the workers' models, which only a simulator knows. Where no worker has weight: the common model if
    `syncs` has grown beyond the last argument, else the average before."""


def fda_steps(
    local: LocalTraining,
    monitor: Monitor,
    units: Callable[[PyTree], Units],
    *,
    optimizer_state: str,
    model_state: str,
    weighting: str,
    with_variance: bool,
) -> FdaSteps:
    """The steps for these settings; see `fda`. `units` gives the units of a tree of parameters."""
    plain = none()

    def weight_of(worker: Worker, rows: ClientRows, steps: Array, unit: int | None = None) -> Array:
        """float32 weight of a worker; 0 if it has missed a step, of this unit or of any."""
        base = client_weight("examples" if weighting == "examples" else "uniform", rows.size)
        done = worker.steps if unit is None else jnp.atleast_1d(worker.steps)[unit]
        return jnp.where(jnp.all(done == steps), base, 0.0)

    def drifts(common: Variables, worker: Worker) -> dict[str, PyTree]:
        parts = units(common.params)
        return parts.split(trees.subtract(worker.variables.params, common.params))

    def state_weight(shared, worker: Worker, rows: ClientRows) -> Array:
        return weight_of(worker, rows, shared.steps)

    def plain_step(loop: Loop, cohort: Cohort, key) -> Loop:
        def work(origin, worker, rows, key):
            new, report = lockstep.one_step(local, worker, origin, rows, key)
            return Partial((report, jnp.int32(1))), new

        cohort, origin = cohort._replace(states=loop.workers), loop.server.common.params
        totals, left_out, states, link = loop.link.on_clients(work, origin, cohort, key, steps=1)
        report, clients = totals.sum
        report = trees.add(loop.report, report | {"excluded": left_out})
        server = loop.server._replace(steps=loop.server.steps + 1)
        return loop._replace(server=server, workers=states, link=link, report=report, clients=clients)

    def monitored_step(loop: Loop, cohort: Cohort, key) -> tuple[Loop, Reduced | None]:
        if monitor.sends is None:
            return plain_step(loop, cohort, key), None
        server, state_of = loop.server, monitor.sends

        def work(server, worker, rows, key):
            new, report = lockstep.one_step(local, worker, server.common.params, rows, key)
            shares = units(server.common.params).shares
            sent = {
                name: state_of(drift, server.direction.get(name, ()), server.threshold * shares[name])
                for name, drift in drifts(server.common, new).items()
            }
            return Contribution(sent, weight_of(new, rows, server.steps + 1), new, report)

        watch = lambda sent: {name: monitor.watch(part) for name, part in sent.items()}
        reduced, states, link = loop.link.map_clients(
            work, server, cohort._replace(states=loop.workers), key, MONITOR, plain, watch, steps=1
        )
        report = trees.add(loop.report, reduced.report)
        server = server._replace(steps=server.steps + 1)
        return Loop(server, states, link, report, reduced.clients, loop.trace), reduced

    def estimates(loop: Loop, cohort: Cohort, key, reduced) -> tuple[dict[str, Array], dict[str, Array]]:
        server, truth = loop.server, {}
        if with_variance:
            cohort = cohort._replace(states=loop.workers)
            of_drift = lambda server, worker: drifts(server.common, worker)
            truth = lockstep.variances(loop.link, cohort, key, server, of_drift, state_weight)
        if monitor.exact:
            return truth, truth
        found: dict[str, Array] = {}
        for name in units(server.common.params).names:
            of_unit = None
            if reduced is not None:
                of_unit = reduced._replace(mean=reduced.mean[name], highest=reduced.highest[name])
            found[name] = monitor.estimate(of_unit, server.steps)
        return found, truth

    def synchronize(loop: Loop, cohort: Cohort, key, name: str) -> Loop:
        up_key, down_key = jax.random.split(key)
        server = loop.server
        parts = units(server.common.params)

        def send(server, worker, rows, _):
            tree = parts.split(worker.variables.params)[name]
            tree |= {"state": worker.variables.state} if model_state == "average" else {}
            tree |= {"optimizer": worker.optimizer} if optimizer_state == "average" else {}
            unit = units(server.common.params).names.index(name)
            weight = weight_of(worker, rows, server.steps, unit)
            if weighting == "drift":
                weight *= lockstep.squared_norm(drifts(server.common, worker)[name])
            return Contribution(tree, weight, worker, {})

        cohort = cohort._replace(states=loop.workers)
        reduced, states, link = loop.link.map_clients(send, server, cohort, up_key, channel(name), steps=0)
        old = parts.split(server.common.params)[name]
        if_nobody = {"state": server.common.state, "optimizer": local.optimizer.init(server.common.params)} | old
        if_nobody = {part: if_nobody[part] for part in reduced.mean}
        mean = trees.select(reduced.weight > 0, reduced.mean, if_nobody)
        received, link = link.broadcast(down_key, mean, cohort, channel(name))
        report = loop.report | {"excluded": loop.report["excluded"] + reduced.report["excluded"]}
        loop = loop._replace(link=link, report=report)

        def averaged(loop: Loop) -> Loop:
            part = {"params": received["params"]}
            common = Variables(
                local.model.project(parts.put(server.common.params, name, part)),
                received.get("state", server.common.state),
            )
            new = parts.split(common.params)[name]
            direction = server.direction
            if monitor.directed:
                direction = direction | {name: directions.direction_of(new, old, directions.first_direction(old))}
            workers = states["algorithm"]
            variables = Variables(
                parts.put(workers.variables.params, name, lockstep.on_all(states, new)),
                lockstep.on_all(states, common.state) if model_state == "average" else workers.variables.state,
            )
            optimizer = workers.optimizer
            if optimizer_state == "average":
                optimizer = lockstep.on_all(states, received["optimizer"])
            elif optimizer_state == "reset":
                optimizer = lockstep.on_all(states, local.optimizer.init(common.params))
            workers = workers._replace(variables=variables, optimizer=optimizer)
            after = server._replace(common=common, direction=direction, syncs=server.syncs + 1)
            return loop._replace(server=after, workers=states | {"algorithm": workers})

        nobody = lambda loop: loop._replace(workers=states)
        return jax.lax.cond(reduced.weight > 0, averaged, nobody, loop)

    def caught_up(loop: Loop, due: Array) -> Loop:
        workers = loop.workers["algorithm"]
        now = jnp.where(due if workers.steps.ndim == 2 else due[0], loop.server.steps, workers.steps)
        return loop._replace(workers=loop.workers | {"algorithm": workers._replace(steps=now)})

    def channel(name: str) -> str:
        return name if name == MODEL else f"{MODEL}/{name}"

    def decide(loop: Loop, cohort: Cohort, key, found: dict[str, Array]) -> tuple[Loop, Array]:
        shares = units(loop.server.common.params).shares
        due = jnp.stack([h > loop.server.threshold * shares[name] for name, h in found.items()])
        if monitor.sends is None:
            return loop, due
        sent = {"synchronize": due.astype(jnp.uint8)}
        _, link = loop.link.broadcast(key, sent, cohort, DECISION, plain)
        return loop._replace(link=link), due

    def mean(loop: Loop, cohort: Cohort, key, syncs_before: Array) -> Variables:
        cohort = cohort._replace(states=loop.workers)
        models = lambda _, worker: worker.variables
        found, weight = lockstep.mean_over_workers(loop.link, cohort, key, loop.server, models, state_weight)
        server = loop.server
        return trees.select(weight > 0, found, trees.select(server.syncs > syncs_before, server.common, server.mean))

    return FdaSteps(plain_step, monitored_step, estimates, decide, synchronize, caught_up, mean)
