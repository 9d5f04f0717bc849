r"""PR-FL: slow clients train a pruned model, which grows back.

    order     coordinates of the kernels by falling h, h <- h + (change of the model)^2, anew every `interval` rounds
    blocks    the order cut into K ranges; a client of density rho has the first ceil(rho K), so that masks are nested
    client    y_k <- train(m_k x) on the coordinates of its mask m_k, and sends y_k - m_k x of these
    server    x <- x + eta_s sum_k n_k m_k (y_k - x) / sum_k n_k m_k, where anyone has the coordinate

    prune     rho_k <- rho_k (1 - 0.9 r_k) if |r_k| > 0.05,  r_k = (T_k - T) / T_k,  within [min_density, 1]
    recover   rho_k <- rho_k + 0.2, at most 1

T_k is the client's mean seconds of a round in the last interval and T the mean over the clients of that interval. Each
`interval` rounds densities are pruned, for the first `pruning` times, and recovered from then on.

PR-FL ("Federated Learning based on Pruning and Recovery", arXiv 2403.15439), in the form of its code
(machengjie321/PR-FL) as far as it is known to us. Ours: the reference time of r_k is the mean over clients, so that
r_k = 1/2 takes a density of 1 to 0.55; h is of the model's changes, which the server has without a message, where the
code has the clients' squared gradients over the time that a coordinate costs; before the first change coordinates are
ordered by magnitude; the stages are of given lengths; blocks make densities multiples of 1 / K. Biases, norms and clips
are never pruned. A step on a pruned model costs time in proportion to the parameters that it has (ours).

Rounds are synchronous here, so that no update is old and the paper's weights by age are 1, and the average is over the
cohort, without a buffer of the other clients' last models.

Traffic: down the client's blocks, each encoded once, so that clients of any density get the same values, and once an
interval a byte a coordinate, its block; up the client's blocks. Both ways a byte for each 8 blocks. The model is new in
every round, so a client lacks all of its blocks: an increment saves bytes where it has an older part of the same model.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8 import trees
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.parts import ServerState, check_choice
from fedjax8.algorithms.salf import MODEL_STATE
from fedjax8.codecs.none import none
from fedjax8.data.batches import num_steps
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.local import check_not_kept
from fedjax8.types import (
    Algorithm,
    Array,
    Cohort,
    Contribution,
    Key,
    Link,
    LocalTraining,
    Partial,
    PyTree,
    Ratio,
    RoundOutput,
    Variables,
)

MOST_BLOCKS = 256
"""A coordinate's block is a byte."""
TOLERANCE, STRENGTH, GROWTH = 0.05, 0.9, 0.2
"""Least |r| that changes a density, the factor of r, and what a density recovers at a time: those of the code."""
ORDER, BLOCKS, UPDATE = "order", "blocks", "update"


class Pruning(NamedTuple):
    """The server's memory."""

    importance: Array
    """float32 `[d]`: h."""
    order: Array
    """int32 `[d]`: the coordinates, those of the first block first; in a block by position, so that the blocks of all
    coordinates say the order."""
    seconds: Array
    """float32: seconds of clients' rounds in this interval."""
    rounds: Array
    """float32: their number."""
    reference: Array
    """float32: T of the last interval; 0 for none."""


class Layout(NamedTuple):
    """Where coordinates lie in the order."""

    order: Array
    """int32 `[d]`."""
    place: Array
    """int32 `[d]`: place of each coordinate in the order."""
    block: Array
    """uint8 `[d]`: its block."""


class Pruned(NamedTuple):
    """A client's memory, as of its last round."""

    density: Array
    """float32; 0 before its first round."""
    interval: Array
    """int32: the interval of that round, -1 for none: it has that interval's order of coordinates."""
    seconds: Array
    """float32: seconds of its rounds in that interval."""
    rounds: Array
    """float32: their number."""


@checked
def pr_fl(
    local: LocalTraining,
    densities: Sequence[float] = (1.0, 0.6, 0.3, 0.1),
    *,
    interval: int = 50,
    pruning: int = 0,
    min_density: float = 0.1,
    blocks: int = 10,
    server_learning_rate: float = 1.0,
    weighting: str = "examples",
    model_state: str = "average",
) -> Algorithm:
    """Averaging of pruned models that recover.

    Args:
      local: the clients' local training; the optimizer's state must be fresh each round.
      densities: client i begins with `densities[i % len(densities)]`.
      interval: rounds between two changes of densities and of the order (50 and 30 in the code).
      pruning: how many times densities are pruned by the clients' seconds before they recover, which needs a system
        model; 0 to begin with given densities and to recover at once.
      min_density: lowest density that pruning leaves.
      blocks: K, from 1 to 256.
      server_learning_rate: eta_s.
      weighting: clients weigh by `examples` or `uniform`.
      model_state: `average` or `fixed`; see `parts.from_parts`.

    Raises:
      UserError: when a run is set up, if the model has fewer kernel values than there are blocks.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    check_choice("model_state", model_state, MODEL_STATE)
    if not densities or not all(0 < rho <= 1 for rho in densities) or not 0 < min_density <= 1:
        raise ValueError(f"densities must be above 0 and at most 1; got {tuple(densities)} and {min_density}")
    if interval < 1 or pruning < 0 or not 1 <= blocks <= MOST_BLOCKS:
        raise ValueError(
            f"interval must be at least 1, pruning at least 0 and blocks from 1 to {MOST_BLOCKS}; got {interval}, "
            f"{pruning} and {blocks}"
        )
    check_not_kept(local, "the parameters that a client trains change with its density")

    def init(variables: Variables) -> ServerState:
        flat, _ = _flat(variables.params)
        if flat.size < blocks:
            raise UserError(
                f"pr_fl prunes kernels, arrays of two dimensions or more, and this model has {flat.size} values of "
                f"them for {blocks} blocks; lower blocks, or use fedavg"
            )
        nothing = jnp.float32(0)
        return ServerState(
            variables, Pruning(jnp.zeros_like(flat), _order_of(jnp.abs(flat), blocks), nothing, nothing, nothing)
        )

    def init_client(variables: Variables) -> Pruned:
        return Pruned(jnp.float32(0), jnp.int32(-1), jnp.float32(0), jnp.float32(0))

    def client(shared, own, rows, key) -> Contribution:
        received, model, layout, like = shared
        there = own["there"]
        mask = there[layout.block]
        values = jnp.where(mask, _in_place(received[BLOCKS], layout), 0.0)
        start = Variables(_params(values, received["params"], like), received.get("state", model))

        def within(gradients: PyTree, *_: PyTree) -> PyTree:
            flat, rest = _flat(gradients)
            return _params(jnp.where(mask, flat, 0.0), rest, like)

        out = local.train(start, rows, key, adjust=within)
        update, rest = _divided(trees.subtract(out.variables.params, start.params), layout, blocks)
        sent = {BLOCKS: update, UPDATE: rest} | ({"state": out.variables.state} if "state" in received else {})
        return Contribution(sent, client_weight(weighting, rows.size), own, out.report, {BLOCKS: there})

    def round_(link: Link, state: ServerState, cohort: Cohort, key: Key) -> RoundOutput:
        order_key, down_key, client_key, time_key = jax.random.split(key, 4)
        params, model = state.variables.params, state.variables.state
        now, before = link.round_number // interval, cohort.memory
        memory = _renewed(state.memory, link.round_number, interval, blocks)
        density = _density(before, now, memory.reference, cohort.ids, densities, pruning, min_density)
        kept = jnp.clip(jnp.ceil(density * blocks - 1e-4), 1, blocks)
        there = jnp.arange(blocks) < kept[:, None]

        lacking = cohort._replace(valid=cohort.valid & (before.interval != now))
        layout = _layout(memory.order, blocks)
        _, link = link.broadcast(order_key, {ORDER: layout.block}, lacking, ORDER, codec=none())
        own, rest = _divided(params, layout, blocks)
        tree = {BLOCKS: own, "params": rest} | ({"state": model} if model_state == "average" else {})
        received, link = link.broadcast(down_key, tree, cohort, present={BLOCKS: there})
        sizes, others = np.diff(_edges(memory.order.size, blocks)), sum(x.size for x in rest.values())
        share = (there @ sizes + others) / (memory.order.size + others)
        reduced, client_states, link = link.map_clients(
            client,
            (received, model, layout, params),
            cohort.remember({"there": there}),
            client_key,
            origin={"state": received["state"]} if "state" in received else {},
            steps=num_steps(local.plan, cohort.size) * share,
        )
        with jax.named_scope("server"):
            change = _params(_in_place(reduced.mean[BLOCKS], layout), reduced.mean[UPDATE], params)
            new = trees.add(params, trees.scale(server_learning_rate, change))
            stepped = Variables(local.model.project(new), reduced.mean.get("state", model))
        memory = memory._replace(importance=memory.importance + jnp.square(_flat(change)[0]))
        seconds = link.seconds(cohort)
        if pruning:
            timed = cohort.remember({"seconds": seconds})
            totals, _, _, link = link.on_clients(_time_of, (), timed, time_key)
            memory = memory._replace(seconds=memory.seconds + totals.sum[0], rounds=memory.rounds + totals.sum[1])
        after = ServerState(trees.select(reduced.weight > 0, stepped, state.variables), memory)
        again = before.interval == now
        new_memory = Pruned(
            density,
            jnp.full_like(before.interval, now),
            jnp.where(again, before.seconds, 0.0) + seconds,
            jnp.where(again, before.rounds, 0.0) + 1.0,
        )
        new_memory = jax.tree.map(lambda new, old: jnp.where(cohort.reached, new, old), new_memory, before)
        report: dict[str, Any] = reduced.report | {"clients": reduced.clients}
        report |= {"density": Ratio(link.count(there & cohort.reached[:, None]), blocks * link.count(cohort.reached))}
        return RoundOutput(after, client_states | {"algorithm": new_memory}, link, report)

    return Algorithm(local, init, init_client, round_, lambda state: state.variables, timed=pruning > 0)


def pruned(density: Array | float, own: Array | float, reference: Array | float, least: float) -> Array:
    """The density of a client whose rounds take `own` seconds where those of clients take `reference` in the mean; as
    it is where either is unknown, 0."""
    r = jnp.where((own > 0) & (reference > 0), 1.0 - reference / jnp.where(own > 0, own, 1.0), 0.0)
    return jnp.where(jnp.abs(r) > TOLERANCE, jnp.clip(density * (1.0 - STRENGTH * r), least, 1.0), density)


def _density(
    before: Pruned,
    now: Array,
    reference: Array,
    ids: Array,
    densities: Sequence[float],
    pruning: int,
    least: float,
) -> Array:
    """float32 `[C]`: densities in the interval `now`, after the changes since the interval of each client's memory."""
    begun = jnp.where(before.interval < 0, jnp.asarray(densities, jnp.float32)[ids % len(densities)], before.density)
    last = jnp.maximum(before.interval, 0)
    own = before.seconds / jnp.maximum(before.rounds, 1.0)
    due = (before.interval >= 0) & (last < now) & (last < pruning)
    density = jnp.where(due, pruned(begun, own, reference, least), begun)
    times = jnp.maximum(now - jnp.maximum(last, pruning), 0)
    return jnp.minimum(density + GROWTH * times, 1.0)


def _renewed(memory: Pruning, number: Array, interval: int, blocks: int) -> Pruning:
    """The server's memory at the start of a round: a new order and reference where an interval begins."""
    begins, zero = (number > 0) & (number % interval == 0), jnp.float32(0)
    mean = memory.seconds / jnp.maximum(memory.rounds, 1.0)
    order = jax.lax.cond(begins, lambda: _order_of(memory.importance, blocks), lambda: memory.order)
    new = Pruning(memory.importance, order, zero, zero, mean)
    return trees.select(begins, new, memory)


def _time_of(shared: PyTree, own: PyTree, rows: Any, key: Key) -> tuple[Partial, PyTree]:
    return Partial((own["seconds"], jnp.float32(1))), own


def _edges(count: int, blocks: int) -> np.ndarray:
    """Ends of the blocks of so many coordinates."""
    return np.arange(blocks + 1) * count // blocks


def _order_of(importance: Array, blocks: int) -> Array:
    """int32 `[d]`: as in `Pruning`; of equally important coordinates the first ones come first."""
    by_importance = jnp.argsort(-importance, stable=True)
    return jnp.argsort(_layout(by_importance, blocks).block, stable=True)


def _layout(order: Array, blocks: int) -> Layout:
    count = len(order)
    place = jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count, dtype=jnp.int32))
    block = np.repeat(np.arange(blocks), np.diff(_edges(count, blocks))).astype(np.uint8)
    return Layout(order, place, jnp.asarray(block)[place])


def _prunable(name: str, leaf: Array) -> bool:
    return leaf.ndim >= 2 and trees.is_float32(leaf) and not trees.is_clip(name)


def _flat(params: PyTree) -> tuple[Array, dict[str, Array]]:
    """(float32 `[d]`: values of the kernels, the other leaves by path name)."""
    named = trees.named_leaves(params)
    kernels = [x.reshape(-1) for name, x in named.items() if _prunable(name, x)]
    rest = {name: x for name, x in named.items() if not _prunable(name, x)}
    return jnp.concatenate(kernels) if kernels else jnp.zeros(0), rest


def _divided(params: PyTree, layout: Layout, blocks: int) -> tuple[tuple[Array, ...], dict[str, Array]]:
    """(blocks `[1, n]`, the other leaves): matrices, which codecs encode as they do kernels."""
    flat, rest = _flat(params)
    in_order = flat[layout.order]
    return tuple(in_order[None, a:b] for a, b in itertools.pairwise(_edges(flat.size, blocks))), rest


def _in_place(parts: Sequence[Array], layout: Layout) -> Array:
    """float32 `[d]`: values of the kernels that `_divided` cut into these blocks."""
    return jnp.concatenate([x[0] for x in parts])[layout.place]


def _params(flat: Array, rest: dict[str, Array], like: PyTree) -> PyTree:
    """The tree that `_flat` took apart."""
    leaves, at = dict(rest), 0
    for name, leaf in trees.named_leaves(like).items():
        if _prunable(name, leaf):
            leaves[name] = flat[at : at + math.prod(leaf.shape)].reshape(leaf.shape)
            at += math.prod(leaf.shape)
    return trees.map_named(lambda name, _: leaves[name], like)


EXAMPLES = (
    {"blocks": 4, "interval": 2},
    {"densities": (0.5,), "blocks": 3, "weighting": "uniform", "model_state": "fixed", "server_learning_rate": 0.5},
)
