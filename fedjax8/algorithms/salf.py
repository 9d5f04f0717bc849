r"""SALF: stragglers send the layers whose gradients they have, and every layer is averaged over those who reached it.

    client   takes its steps on the layers l .. L that its backward pass reaches, and sends their updates d_i^l
    mean     m_l = mean over U_l of d_i^l (0 if U_l is empty),     U_l the clients that reached layer l

    rule     corrected     x_l <- x_l + eta_s m_l / (1 - p_l),     p_l = P(U_l is empty)
             all_clients   x_l <- x_l + eta_s |U_l| / |U| m_l

Layer 1 is the input's, layer L the output's. SALF (Lang, Cohen, Shlezinger, "Stragglers-Aware Low-Latency Synchronous
Federated Learning via Layer-Wise Model Updates", arXiv 2403.18375). `corrected` is the paper's rule as it is known to
us, w_l <- (mean over U_l of w_i^l - p_l w_l) / (1 - p_l), which was not read again; it is unbiased where clients weigh
the same and have one law of depths. `all_clients` is that of the authors' code, in which a layer that is not reached
counts with the value that was broadcast, so that the mean leans to the old value.

    depth    uniform   a straggler reaches the last 1 .. L layers, each number as likely; the others reach all.
                       Stragglers are the same clients in all rounds, as in the published experiments (90 %), which
                       draw over entries of the state dictionary and not over layers.
             clock     what the backward pass got to by the deadline, by the round's clock.

By the clock (ours): a client has deadline - t_i seconds, shared evenly by its steps. The forward pass is 1/3 of a step
and the backward pass 2/3, spread over layers by their numbers of parameters, from the output to the input. A client
sends what it has, so that none is late; its message travels after the deadline.

p_l is `known` for the uniform depth: with U clients of which all are stragglers (1 - (l/L))^U, else 0. Or it is
`estimated` (ours): (1 - q_l)^U, q_l the share of clients that reached layer l in all rounds so far, this one included.

Traffic: a model down; up a byte for each 8 layers, and the layers that were reached.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import paths, trees
from fedjax8.algorithms import layers as ordered
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.parts import ServerState, check_choice
from fedjax8.data.batches import num_steps, shuffled
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.keys import random_key
from fedjax8.local import check_not_kept
from fedjax8.types import (
    Algorithm,
    Array,
    Cohort,
    Contribution,
    Key,
    Link,
    LocalTraining,
    PyTree,
    Ratio,
    RoundOutput,
    Variables,
)

RULES = ("corrected", "all_clients")
DEPTHS = ("uniform", "clock")
REACH = ("known", "estimated")
MODEL_STATE = ("average", "fixed")
UPDATE = "update"
_FORWARD = 1 / 3
"""Share of a step that the forward pass takes: a product each, where the backward pass has two."""
_EARLY = 1e-5
"""Share of a step by which a float32 may miss the moment at which a layer is done."""


class Reached(NamedTuple):
    """Counts over all rounds, of the estimate of p_l."""

    layers: Array
    """float32 `[L]`: clients that reached each layer."""
    clients: Array
    """float32."""


@checked
def salf(
    local: LocalTraining,
    rule: str = "corrected",
    *,
    depth: str = "uniform",
    stragglers: float = 0.9,
    deadline: float | None = None,
    reach: str | None = None,
    layers: Sequence[str] = (),
    server_learning_rate: float = 1.0,
    weighting: str = "uniform",
    model_state: str = "average",
    seed: int = 0,
) -> Algorithm:
    """Averaging by layer, with stragglers that send the last layers.

    Args:
      local: the clients' local training; the optimizer's state must be fresh each round.
      rule: `corrected` or `all_clients`.
      depth: `uniform`, or by the `clock`, which needs a system model.
      stragglers: share of registered clients that are stragglers, to the nearest number, with depth `uniform`.
      deadline: seconds from the start of a round at which clients stop training, with depth `clock`.
      reach: p_l is `known` or `estimated`; None: known where it is.
      layers: path patterns of the layers from the input to the output, such as `("Conv_*", "Dense_0", "Dense_1")`; a
        parameter belongs to the first that matches it or a module that it lies in. By default each module with
        parameters is a layer, in the order of their paths, numbers in paths as numbers, and `head` last.
      server_learning_rate: eta_s.
      weighting: clients weigh by `examples` or `uniform`; the correction is for uniform weights.
      model_state: `average` or `fixed`; see `parts.from_parts`. Of a forward pass, which all clients do, it is whole.
      seed: of the choice of the stragglers.

    Raises:
      UserError: when a run is set up, if a pattern of `layers` matches nothing, or a parameter matches none.
    """
    for name, given, allowed in (("rule", rule, RULES), ("depth", depth, DEPTHS), ("weighting", weighting, WEIGHTINGS)):
        check_choice(name, given, allowed)
    check_choice("model_state", model_state, MODEL_STATE)
    clocked = depth == "clock"
    reach = ("estimated" if clocked else "known") if reach is None else reach
    check_choice("reach", reach, REACH)
    if clocked and reach == "known":
        raise ValueError("reach='known' needs depth='uniform': by the clock nobody knows how far clients get")
    if clocked != (deadline is not None) or not 0 < (deadline or 1.0) < math.inf:
        raise ValueError(f"depth='clock' needs a deadline above 0, and no other depth takes one; got {deadline}")
    if not 0 <= stragglers <= 1:
        raise ValueError(f"stragglers must be a share from 0 to 1; got {stragglers}")
    check_not_kept(local, "a straggler's optimizer would go on with the steps of some layers only")
    patterns = paths.as_patterns(layers)

    def init(variables: Variables) -> ServerState:
        count = len(layers_of(variables.params, patterns))
        return ServerState(variables, Reached(jnp.zeros(count), jnp.float32(0)))

    def client(shared, reached, rows, key) -> Contribution:
        received, model = shared
        names = layers_of(received["params"], patterns)
        mask = {name: reached[i] for i, of_layer in enumerate(names) for name in of_layer}

        def within(gradients: PyTree, *_: PyTree) -> PyTree:
            return trees.map_named(lambda name, g: jnp.where(mask[name], g, 0.0), gradients)

        start = Variables(received["params"], received.get("state", model))
        out = local.train(start, rows, key, adjust=within)
        update = trees.named_leaves(trees.subtract(out.variables.params, start.params))
        sent = {UPDATE: tuple({name: update[name] for name in of_layer} for of_layer in names)}
        sent |= {"state": out.variables.state} if "state" in received else {}
        return Contribution(sent, client_weight(weighting, rows.size), reached, out.report, {UPDATE: reached})

    def stops(link: Link, cohort: Cohort, key: Key, sizes: Sequence[int]) -> tuple[Array, Array | None]:
        """(bool `[C, L]`: layers that each client reaches, local steps that it takes time for)."""
        if clocked:
            return by_the_clock(link.until(deadline or 0.0), cohort, num_steps(local.plan, cohort.size), sizes)
        slow = are_stragglers(cohort.ids, link.num_clients, stragglers, seed)
        last = jax.vmap(lambda i: jax.random.randint(jax.random.fold_in(key, i), (), 1, len(sizes) + 1))(cohort.ids)
        last = jnp.where(slow, last, len(sizes))
        return jnp.arange(len(sizes)) >= len(sizes) - last[:, None], None

    def missed(link: Link, cohort: Cohort, there: Array, counts: Reached) -> Array:
        """float32 `[L]`: p_l."""
        number = link.count(there).astype(jnp.float32)
        if reach == "estimated":
            return (1.0 - counts.layers / jnp.maximum(counts.clients, 1.0)) ** number
        slow = are_stragglers(cohort.ids, link.num_clients, stragglers, seed)
        whole = link.count(there & ~slow) > 0
        return jnp.where(whole, 0.0, unreached(number, len(counts.layers)))

    def round_(link: Link, state: ServerState, cohort: Cohort, key: Key) -> RoundOutput:
        down_key, depth_key, client_key = jax.random.split(key, 3)
        params, model = state.variables.params, state.variables.state
        names = layers_of(params, patterns)
        leaves = trees.named_leaves(params)
        sizes = [sum(leaves[name].size for name in of_layer) for of_layer in names]
        tree = {"params": params} | ({"state": model} if model_state == "average" else {})
        received, link = link.broadcast(down_key, tree, cohort)
        reached, steps = stops(link, cohort, depth_key, sizes)
        reduced, client_states, link = link.map_clients(
            client,
            (received, model),
            cohort.remember(reached),
            client_key,
            origin={"state": received["state"]} if "state" in received else {},
            steps=steps,
        )
        there = cohort.reached & (cohort.size > 0)
        of_layer = jnp.stack([link.count(there & reached[:, i]) for i in range(len(names))])
        counts = Reached(*trees.add(state.memory, Reached(of_layer.astype(jnp.float32), link.count(there))))
        share = reduced.shares[UPDATE]
        if rule == "corrected":
            factor = jnp.where(share > 0, 1.0 / (1.0 - jnp.where(share > 0, missed(link, cohort, there, counts), 0)), 0)
        else:
            factor = share
        with jax.named_scope("server"):
            step = {n: factor[i] * x for i, part in enumerate(reduced.mean[UPDATE]) for n, x in part.items()}
            new = trees.map_named(lambda name, x: x + server_learning_rate * step[name], params)
            stepped = Variables(local.model.project(new), reduced.mean.get("state", model))
        after = trees.select(reduced.weight > 0, ServerState(stepped, counts), state)
        report: dict[str, Any] = reduced.report | {"clients": reduced.clients}
        report |= {"layers_reached": Ratio(jnp.sum(of_layer), len(names) * link.count(there))}
        return RoundOutput(after, client_states | {"algorithm": cohort.memory}, link, report)

    return Algorithm(
        local,
        init,
        lambda variables: (),
        round_,
        lambda state: state.variables,
        timed=clocked,
        trains_until=math.inf if deadline is None else deadline,
    )


def unreached(clients: Array | float, layers: int) -> Array:
    """float32 `[L]`: the probability that none of so many stragglers of uniform depth reaches each layer."""
    return (1.0 - jnp.arange(1, layers + 1) / layers) ** clients


def are_stragglers(ids: Array, num_clients: int, share: float, seed: int) -> Array:
    """bool: the nearest whole number to a share of all clients, the same ones in all rounds."""
    return shuffled(random_key(seed), ids, jnp.int32(num_clients)) < round(share * num_clients)


def by_the_clock(link: Link, cohort: Cohort, steps: Array, sizes: Sequence[int]) -> tuple[Array, Array]:
    """(bool `[C, L]`: layers of these sizes that each client's backward pass reaches by the deadline of the link,
    float32 `[C]`: local steps that it takes time for)."""
    left, one = jnp.maximum(link.seconds_left(cohort), 0.0), link.step_seconds(cohort)
    taken = jnp.where(one > 0, jnp.minimum(steps, left / jnp.where(one > 0, one, 1.0)), steps)
    part = taken / jnp.maximum(steps, 1)
    from_output = jnp.cumsum(jnp.asarray(sizes[::-1], jnp.float32))[::-1] / max(sum(sizes), 1)
    return part[:, None] >= _FORWARD + (1 - _FORWARD) * from_output - _EARLY, taken


def layers_of(params: PyTree, patterns: Sequence[str]) -> list[list[str]]:
    """Path names of the parameters of each layer, from the input to the output; see `salf`."""
    names = list(trees.named_leaves(params))
    if patterns:
        return _by_patterns(names, patterns)
    return [["/".join(path) for path in of_layer] for of_layer in ordered.layers_of(params)]


def _by_patterns(names: Sequence[str], patterns: Sequence[str]) -> list[list[str]]:
    inside: Mapping[str, list[str]] = {name: [name, *paths.above(name)] for name in names}
    every = dict.fromkeys(path for of_leaf in inside.values() for path in of_leaf)
    paths.matching(patterns, every, "salf: layers")
    first = lambda name: next(
        (i for i, p in enumerate(patterns) if any(paths.matches(x, [p]) for x in inside[name])), -1
    )
    layers = [[name for name in names if first(name) == i] for i in range(len(patterns))]
    if lost := [name for name in names if first(name) < 0]:
        raise UserError(f"salf: layers: no pattern matches {paths.listed(lost)}; add one, such as '*'")
    return [of_layer for of_layer in layers if of_layer]


EXAMPLES = (
    {},
    {"rule": "all_clients", "stragglers": 0.5, "weighting": "examples", "model_state": "fixed"},
    {"reach": "estimated", "layers": ("first", "head"), "server_learning_rate": 0.5},
)
