"""FDA: all workers step together, and average their models only when these have drifted apart.

Theologitis et al. 2024, "Communication-Efficient Distributed Deep Learning via Federated Dynamic Averaging"
(arXiv 2405.20988, algorithm 1).

    every step, on every worker k:   w_k <- optimizer step on a batch;     u_k = w_k - w_0;     send the small state S_k
    if H(mean S_k) > Theta:          w_0 <- (1/K) sum_k w_k;     all w_k <- w_0

H, from `algorithms.monitors`, is at least the variance of the models about their mean, so the variance stays at most
Theta (the round invariant, section 3). A *round* of the simulation is a number of such steps (`client.steps`, or epochs
of the largest worker), all of them in one compiled loop; all workers take part in every one of them.

Synchronous training, and local SGD with a fixed period, are the monitors `synchronous` and `periodic`.

Traffic: the model down once; at every check a state up and a byte for the decision down; at a synchronization the model
up and down. The log has `compat_model_bytes` and `compat_monitor_bytes` too, after the formula in the authors' code:
(1 + synchronizations) * 2 * K * 4d and checks * K * (bytes of a state), without the decisions; the paper gives no
formula. Beyond the paper: codecs on the models, weights, averaged optimizer states, thresholds per layer (in the
authors' code, unused there), checks every n steps.
"""

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from fedjax8.algorithms import lockstep
from fedjax8.algorithms.fda_steps import DECISION, MONITOR, FdaState, Loop, fda_steps
from fedjax8.algorithms.monitors import _direction as directions
from fedjax8.algorithms.monitors.base import Monitor
from fedjax8.algorithms.monitors.linear import linear
from fedjax8.algorithms.monitors.never import never
from fedjax8.algorithms.monitors.synchronous import synchronous
from fedjax8.algorithms.parts import check_choice
from fedjax8.algorithms.thresholds import guideline, tradeoff
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.local import check_not_kept, check_restarts
from fedjax8.types import (
    Algorithm,
    Array,
    Channel,
    ClientRows,
    Cohort,
    Link,
    LocalTraining,
    PyTree,
    RoundOutput,
    Variables,
    Way,
)

WEIGHTINGS = ("uniform", "examples", "drift")
OPTIMIZER_STATES = ("keep", "reset", "average")
MODEL_STATES = ("local", "average")
START = "start"
"""Name of the message with the initial model."""


def threshold_of(
    theta: float | str,
    num_params: int,
    setting: str,
    workers: int,
    bandwidth: float | None,
    step_seconds: float | None,
    topology: str,
) -> float:
    """Theta as a number: itself, or by a rule of `thresholds` where it is `auto`."""
    if theta != "auto":
        return float(theta)
    if bandwidth is None or step_seconds is None:
        return guideline(num_params, setting)
    return tradeoff(num_params, workers, bandwidth, step_seconds, topology)


@checked
def fda(
    local: LocalTraining,
    theta: float | str = "auto",
    *,
    monitor: Monitor | None = None,
    workers: int | None = None,
    check_every: int = 1,
    optimizer_state: str = "keep",
    model_state: str = "local",
    weighting: str = "uniform",
    per_layer: bool = False,
    setting: str = "balanced",
    bandwidth: float | None = None,
    step_seconds: float | None = None,
    topology: str = "shared",
    measure_variance: bool = False,
    record_steps: bool = False,
) -> Algorithm:
    """Federated dynamic averaging.

    Args:
      local: the workers' local training; its batch plan gives the number of steps of a round. The rows of every step
        are drawn anew, independently of earlier ones, as in the authors' code.
      theta: variance threshold in squared units of parameters. Workers synchronize where H > theta; 0 or less means
        always, infinity never. `auto` takes the paper's rule of thumb for `setting`, or, where `bandwidth` (bits per
        second) and `step_seconds` are given, this project's own; see `thresholds` for where both fail.
      monitor: from `algorithms.monitors`; default `linear()`.
      workers: K, their number; checked if given.
      check_every: steps from check to check; 1 in the paper.
      optimizer_state: at a synchronization each worker's stays with it (`keep`, as in the authors' code), is begun
        anew (`reset`), or is sent and averaged too (`average`).
      model_state: batch statistics stay with the worker (`local`, as in the authors' code) or are averaged at
        synchronizations and count as traffic (`average`).
      weighting: workers weigh alike (`uniform`, as in the paper), by `examples`, or, at synchronizations only, by
        their squared `drift` (an option of the authors' code; then the invariant is not guaranteed).
      per_layer: every layer has a monitor of its own, and the share of theta of its parameters; only layers beyond
        it are averaged.
      setting: `fl`, `balanced` or `hpc`.
      bandwidth, step_seconds, topology: as of `thresholds.tradeoff`, for an `auto` theta.
      measure_variance: logs the true `variance` too, which only a simulator knows.
      record_steps: logs `variance_estimates`, `synchronized` (and `variances`), a value for each step of the round;
        needs `client.steps`.

    A worker whose step gives NaN, infinity or a model beyond `trees.LARGEST` takes that step back, is counted in
    `excluded` and named, and has no weight until the next synchronization. So does one whose message to the monitor is
    beyond that, which with a squared length in it is a drift beyond 2^24.
    """
    check_choice("optimizer_state", optimizer_state, OPTIMIZER_STATES)
    check_choice("model_state", model_state, MODEL_STATES)
    check_choice("weighting", weighting, WEIGHTINGS)
    if per_layer and (optimizer_state != "keep" or model_state != "local"):
        raise ValueError("per_layer averages layers by themselves: needs optimizer_state='keep', model_state='local'")
    if optimizer_state != "keep":
        check_not_kept(local, f"optimizer_state={optimizer_state!r} already decides about it")
    if check_every < 1:
        raise ValueError(f"check_every must be at least 1, got {check_every}")
    if record_steps and not local.plan.steps:
        raise ValueError("record_steps needs a fixed number of steps a round: set client.steps")
    if theta == "auto" and bandwidth is not None and None in (step_seconds, workers):
        raise ValueError("theta='auto' with a bandwidth needs step_seconds and workers too")
    if theta != "auto" and math.isnan(float(theta)):
        raise ValueError("theta must be a number or 'auto', got nan")
    monitor = linear() if monitor is None else monitor
    if theta != "auto" and not 0 < float(theta) < math.inf:  # H need not be evaluated, nor anything be sent for it
        monitor = synchronous() if float(theta) <= 0 else never()
    with_variance = measure_variance or monitor.exact
    units = functools.partial(lockstep.units_of, per_layer=per_layer)
    steps = fda_steps(
        local,
        monitor,
        units,
        optimizer_state=optimizer_state,
        model_state=model_state,
        weighting=weighting,
        with_variance=with_variance,
    )

    def init(variables: Variables) -> FdaState:
        if optimizer_state == "reset":
            check_restarts(local.optimizer.init(variables.params))
        num_params = sum(x.size for x in jax.tree.leaves(variables.params))
        threshold = threshold_of(theta, num_params, setting, workers or 1, bandwidth, step_seconds, topology)
        direction = {}
        if monitor.directed:
            parts = units(variables.params).split(variables.params)
            direction = {name: directions.first_direction(part) for name, part in parts.items()}
        return FdaState(variables, variables, direction, jnp.float32(threshold), jnp.int32(0), jnp.int32(0))

    def begin(link: Link, state: FdaState, cohort: Cohort, key) -> tuple[FdaState, PyTree, Link]:
        """The workers with the initial model, which is sent to each before the first round."""

        def first(operands):
            link, state, states = operands
            received, link = link.broadcast(key, {"params": state.common.params}, cohort, START)
            common = state.common._replace(params=received["params"])
            workers = states["algorithm"]
            variables = workers.variables._replace(params=lockstep.on_all(states, common.params))
            return link, state._replace(common=common), states | {"algorithm": workers._replace(variables=variables)}

        link, state, states = jax.lax.cond(
            link.round_number == 0, first, lambda operands: operands, (link, state, cohort.states)
        )
        return state, states, link

    def round_(link: Link, state: FdaState, cohort: Cohort, key) -> RoundOutput:
        if workers not in (None, link.num_clients):
            raise UserError(f"fda: workers is {workers}, but there are {link.num_clients} clients")
        start_key, loop_key, mean_key = jax.random.split(key, 3)
        state, states, link = begin(link, state, cohort, start_key)
        some_rows = ClientRows(link.pool, cohort.start[0], cohort.size[0])
        report = lockstep.no_report(local, state.common, some_rows) | {"excluded": jnp.int32(0)}

        def check(loop: Loop, key, place: Array) -> Loop:
            variance_key, decision_key, sync_key = jax.random.split(jax.random.fold_in(key, 1), 3)
            loop, reduced = steps.monitored(loop, cohort, key)
            found, truth = steps.estimates(loop, cohort, variance_key, reduced)
            loop, due = steps.decide(loop, cohort, decision_key, found)
            for number, name in enumerate(found):
                own_key = jax.random.fold_in(sync_key, number)
                synchronize = functools.partial(steps.synchronize, cohort=cohort, key=own_key, name=name)
                loop = jax.lax.cond(due[number], synchronize, lambda loop: loop, loop)
            loop = steps.caught_up(loop, due)
            seen = {"variance_estimate": sum(found.values()), "synchronized": jnp.sum(due)}
            seen |= {"variance": sum(truth.values())} if truth else {}
            return loop._replace(trace={kind: loop.trace[kind].at[place].set(x) for kind, x in seen.items()})

        def step(index: Array, loop: Loop) -> Loop:
            own_key, place = jax.random.fold_in(loop_key, index), index if record_steps else jnp.int32(0)
            if check_every == 1:
                return check(loop, own_key, place)
            due = (loop.server.steps + 1) % check_every == 0
            plain = lambda loop: steps.plain(loop, cohort, own_key)
            return jax.lax.cond(due, lambda loop: check(loop, own_key, place), plain, loop)

        length = local.plan.steps if record_steps else 1
        kinds = ("variance_estimate", "synchronized", *(("variance",) if with_variance else ()))
        trace = {kind: jnp.full(length, jnp.nan, jnp.float32) for kind in kinds}
        loop = Loop(state, states, link, report, jnp.int32(0), trace)
        loop = jax.lax.fori_loop(0, lockstep.steps_for_all(local, link, cohort, key), step, loop)
        server = loop.server._replace(mean=steps.mean(loop, cohort, mean_key, state.syncs))
        report = loop.report | {
            "clients": loop.clients,
            "steps": server.steps,
            "syncs": server.syncs,
            "threshold": server.threshold,
            **{kind: loop.trace[kind][-1] for kind in kinds if kind != "synchronized"},
        }
        if record_steps:
            names = {"variance_estimate": "variance_estimates", "variance": "variances", "synchronized": "synchronized"}
            report |= {names[kind]: loop.trace[kind] for kind in kinds}
        return RoundOutput(server, loop.workers, loop.link, report)

    def account(sent: Mapping[Channel, int]) -> dict[str, int]:
        model = monitoring = 0
        for channel, count in sent.items():
            if channel.name == MONITOR:
                per_check = channel.message_bytes if monitor.compat_bytes is None else monitor.compat_bytes
                monitoring += int(per_check * count)
            elif channel.direction == "up" or (channel.name == START and monitor.compat_start):
                model += 2 * channel.float32_bytes * count
        return {"compat_model_bytes": model, "compat_monitor_bytes": monitoring}

    def ways(channels: Sequence[Channel], steps: int, clients: int) -> Sequence[Way]:
        """Messages without a synchronization, and with one at every check; the first model in the first round alone."""
        checks = steps // check_every, -(-steps // check_every)
        fewest = {c: checks[0] for c in channels if c.name in (MONITOR, DECISION) and not c.part}
        return fewest, {c: 1 if c.name == START else checks[1] for c in channels}

    def start(variables: Variables) -> lockstep.Worker:
        worker, count = lockstep.start_worker(local, variables), len(units(variables.params).names)
        return worker._replace(steps=jnp.zeros(count, jnp.int32)) if count > 1 else worker

    return Algorithm(local, init, start, round_, lambda state: state.mean, account, everyone=True, ways=ways)


EXAMPLES = ({}, {"theta": 0.0}, {"theta": 0.1, "per_layer": True, "measure_variance": True})
