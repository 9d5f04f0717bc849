"""FedECADO: federated training as an electrical circuit whose equations the server solves, so that clients which have
trained for different times are compared at the same ones.

Agarwal and Pileggi, arXiv 2410.09933. Of the paper the abstract was read; the equations follow a summary of it, their
signs and what is marked below were inferred.

    dx/dt = sum_i I_i,      L dI_i/dt = x_i - x,      dx_i/dt = -q_i grad f_i(x_i) - I_i,      q_i = n_i / mean_j n_j

    client i, I_i held:  from x, e_i steps y <- y - eta (q_i g_i(y) + I_i);    T_i = e_i eta;    u_i = (y_i - x) / T_i
    Gamma_i(t) = x + t u_i                               its path, interpolated up to T_i and extrapolated beyond it
    server, 0 <= t <= max_i T_i, backward Euler with steps dt, of which each solves for x+ and all I_i+:
        x+ = x + dt sum_i I_i+,    L (I_i+ - I_i) / dt = Gamma_i(t + dt) - (I_i+ - I_i) / G - x+,    G = 1/dt + H

dt is chosen so that the estimate of the local truncation error, dt/2 times the change of a derivative, is below
`tolerance` for x and for sum_i I_i. At equilibrium all x_i = x and sum_i I_i = 0, which is the optimum.

Chosen here: weights q_i are K times the paper's p_i = n_i / sum_j n_j. That is the same circuit in a time K times as
fast, with flows K times as large and L divided by K^2; as published, K + 1 states of unit capacity share one gradient,
so that x moves K + 1 times as slowly as FedAvg's at the same eta. Sensitivities G are scalars, the same for all
clients, from one curvature H. Clients start each round from x. Flows of clients that are not in the round stay as they
are and go on acting on x. With these G the solution needs no more of the clients than sum_i u_i and max_i T_i, and flow
i moves by b + a u_i with the same b and a for all, so that it stays with its client:

    beta = (dt/L) / (1 + dt / (L G)),    b = sum of beta (x_0 - x+),    a = sum of beta (t + dt)      over the steps

Traffic: a model and 4 bytes down, u_i and T_i (4 bytes, which no codec touches) up; then b and 4 bytes down. Encoded
velocities sum to the flows as the server has them only up to the codec's error: use an unbiased one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.parts import MODEL_STATE, check_choice
from fedjax8.codecs.none import none
from fedjax8.codecs.per_path import per_path
from fedjax8.given import checked
from fedjax8.types import (
    Aggregator,
    Algorithm,
    Array,
    Cohort,
    Contribution,
    Link,
    LocalTraining,
    Partial,
    PyTree,
    RoundOutput,
    Variables,
)

FLOWS = "flows"
"""Name of the message by which clients move their flows."""
MOST_STEPS = 256
"""A step of the solver is never shorter than the window over this, whatever its error."""


class FedecadoState(NamedTuple):
    """State of the server."""

    variables: Variables
    """x, the central state."""
    total: PyTree
    """sum_i I_i over all clients, float32 like the parameters."""


class Memory(NamedTuple):
    """State of a client."""

    flow: PyTree
    """I_i, float32 like the parameters."""


class InRound(NamedTuple):
    """A client's memory between its two exchanges with the server."""

    flow: PyTree
    velocity: PyTree
    """u_i."""
    heard: Array
    """bool: whether the server used it."""


class Window(NamedTuple):
    """The solver's state at a time of a round's window."""

    time: Array
    step: Array
    """float32: dt to try next."""
    center: PyTree
    """x."""
    total: PyTree
    """sum_i I_i."""
    rate: PyTree
    """Its derivative."""
    drift: PyTree
    """b."""
    gain: Array
    """a."""
    steps: Array
    """int32: steps done."""


@checked
def fedecado(
    local: LocalTraining,
    learning_rate: float,
    *,
    inductance: float = 1.0,
    curvature: float = 1.0,
    tolerance: float = 1e-3,
    weighting: str = "examples",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """FedECADO with scalar sensitivities.

    Args:
      local: the clients' local training; its optimizer must be plain SGD with step `learning_rate`, in which time is
        measured.
      learning_rate: eta; with a local training that is `scheduled`, the optimizer's own, which the schedule multiplies.
      inductance: L; the smaller, the faster flows follow the differences of the models. Below max_i T_i^2 / 4 flows
        may grow from round to round, since clients hold them for so long.
      curvature: H, an estimate of the curvature of a client's loss; infinite ignores how clients answer to flows.
      tolerance: of the local truncation error, in units of parameters.
      weighting: q_i by `examples`, or `uniform`, 1. The mean number of examples is that of the cohort.
      model_state: `average` or `fixed`; see `parts.from_parts`.
      aggregate: the rule that replaces the mean of the velocities u_i.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    check_choice("model_state", model_state, tuple(x for x in MODEL_STATE if x != "local"))
    for name, value in (("learning_rate", learning_rate), ("inductance", inductance), ("tolerance", tolerance)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if not curvature >= 0:
        raise ValueError(f"curvature must be at least 0, got {curvature}")

    def zeros(variables: Variables) -> PyTree:
        return trees.zeros_like(variables.params)

    def work(received, at: InRound, rows, key) -> Contribution:
        start = Variables(received["params"], received["state"])
        share = received["share"] * (rows.size if weighting == "examples" else 1)

        def correct(gradients, params, batch, key):
            return jax.tree.map(lambda g, flow: share * g + flow, gradients, at.flow)

        out = local.train(start, rows, key, adjust=correct)
        duration = jnp.float32(out.num_steps * (learning_rate * local.rate(rows.pool)))
        per_time = 1.0 / jnp.where(duration > 0, duration, 1.0)
        velocity = trees.scale(per_time, trees.subtract(out.variables.params, start.params))
        sent = {"velocity": velocity, "duration": duration}
        sent |= {"state": out.variables.state} if model_state == "average" else {}
        weight = jnp.where(duration > 0, client_weight("uniform", rows.size), 0.0)
        return Contribution(sent, weight, InRound(at.flow, velocity, weight > 0), out.report)

    def round_(link: Link, state: FedecadoState, cohort: Cohort, key) -> RoundOutput:
        down_key, client_key, flow_key = jax.random.split(key, 3)
        share = jnp.float32(1)
        if weighting == "examples":
            count = lambda _, memory, rows, __: (Partial((rows.size.astype(jnp.float32), jnp.float32(1))), memory)
            examples, clients = link.on_clients(count, (), cohort, client_key)[0].sum
            share = clients / jnp.maximum(examples, 1.0)
        variables = state.variables
        tree = {"params": variables.params, "share": share}
        tree |= {"state": variables.state} if model_state == "average" else {}
        with_share = per_path({"share": none()}, link.downlink)
        received, link = link.broadcast(down_key, tree, cohort, codec=with_share)
        received = {"state": variables.state} | received

        flows = cohort.memory.flow
        cohort = cohort.remember(InRound(flows, trees.zeros_like(flows), jnp.zeros_like(cohort.valid)))
        reduced, states, link = link.map_clients(
            work,
            received,
            cohort,
            client_key,
            codec=per_path({"duration": none()}, link.uplink),
            watch=lambda sent: sent["duration"],
            aggregate=aggregate,
            origin={"state": received["state"]} if model_state == "average" else {},
        )
        velocities = trees.scale(reduced.weight, reduced.mean["velocity"])
        duration = jnp.where(reduced.weight > 0, reduced.highest, 0.0)
        with jax.named_scope("server"):
            end = solve(
                variables.params,
                received["params"],
                state.total,
                velocities,
                reduced.weight,
                duration,
                inductance=inductance,
                curvature=curvature,
                tolerance=tolerance,
            )
        new = FedecadoState(
            Variables(local.model.project(end.center), reduced.mean.get("state", variables.state)), end.total
        )
        new = trees.select(reduced.weight > 0, new, state)

        cohort = cohort._replace(states=states)
        tree = {"update": end.drift, "gain": end.gain}
        with_gain = per_path({"gain": none()}, link.downlink)
        moved, link = link.broadcast(flow_key, tree, cohort, FLOWS, with_gain)

        def move(moved, at: InRound, rows, key) -> tuple[Partial, InRound]:
            flow = jax.tree.map(lambda i, b, u: i + (b + moved["gain"] * u), at.flow, moved["update"], at.velocity)
            return Partial(()), at._replace(flow=trees.select(at.heard, flow, at.flow))

        _, _, states, link = link.on_clients(move, moved, cohort, client_key)
        cohort = cohort._replace(states=states)
        cohort = cohort.remember(Memory(cohort.memory.flow))
        report = reduced.report | {"clients": reduced.clients, "window": duration, "solver_steps": end.steps}
        return RoundOutput(new, cohort.states, link, report)

    return Algorithm(
        local,
        lambda variables: FedecadoState(variables, zeros(variables)),
        lambda variables: Memory(zeros(variables)),
        round_,
        lambda state: state.variables,
    )


def solve(
    center: PyTree,
    origin: PyTree,
    total: PyTree,
    velocities: PyTree,
    count: Array,
    duration: Array,
    *,
    inductance: float,
    curvature: float,
    tolerance: float,
) -> Window:
    """The central state and the flows at the end of a window, by backward Euler; see the module.

    Args:
      center: x at its beginning.
      origin: x as clients received it, where their paths begin.
      total: sum of the flows of all clients.
      velocities: sum of u_i over the clients of the round.
      count: their number.
      duration: of the window.
      inductance, curvature, tolerance: L, H, and the bound of the error of a step.
    """
    smallest = duration / MOST_STEPS

    def tried(at: Window, step: Array) -> Window:
        """The window after one step."""
        time = at.time + step
        sensitivity = 1.0 / step + curvature
        beta = (step / inductance) / (1.0 + step / (inductance * sensitivity))
        implicit = lambda x, flow, o, u: (
            (x + step * (flow + beta * (count * o + time * u))) / (1.0 + step * count * beta)
        )
        new = jax.tree.map(implicit, at.center, at.total, origin, velocities)
        pull = jax.tree.map(lambda o, u, x: count * (o - x) + time * u, origin, velocities, new)
        moved = jax.tree.map(lambda b, o, x: b + beta * (o - x), at.drift, origin, new)
        flows = trees.add(at.total, trees.scale(beta, pull))
        rate = trees.scale(1.0 / inductance, pull)
        return Window(time, step, new, flows, rate, moved, at.gain + beta * time, at.steps + 1)

    def error(before: Window, after: Window) -> Array:
        """Estimate of the local truncation error, the largest of all coordinates; infinite where there is none."""
        changes = jax.tree.leaves(trees.subtract((after.total, after.rate), (before.total, before.rate)))
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in changes])) * after.step / 2
        return jnp.where(jnp.isfinite(largest), largest, jnp.inf)

    def advance(at: Window) -> Window:
        left = duration - at.time
        step = jnp.minimum(at.step, left)
        after = tried(at, step)
        found = error(at, after)
        fitting = step * jnp.clip(0.9 * jnp.sqrt(tolerance / jnp.maximum(found, 1e-30)), 0.2, 2.0)
        accepted = (found <= tolerance) | (step <= smallest)
        after = after._replace(time=jnp.where(step == left, duration, after.time))
        return trees.select(accepted, after, at)._replace(step=jnp.maximum(fitting, smallest))

    nothing, zero = trees.zeros_like(total), jnp.float32(0)
    rate = jax.tree.map(lambda o, x: count * (o - x) / inductance, origin, center)
    at = Window(zero, duration, center, total, rate, nothing, zero, jnp.int32(0))
    return jax.lax.while_loop(lambda at: at.time < duration, advance, at)


EXAMPLES = ({"learning_rate": 0.1}, {"learning_rate": 0.1, "weighting": "uniform", "inductance": 0.5})
