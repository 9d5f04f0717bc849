"""Hierarchical averaging: groups of clients with an edge server each, which average for some rounds before the server
does.

    server -> edge servers    x                                        traffic `edge`
    repeat `inner_rounds` times, every edge server k with the clients of its group that take part:
        z_k <- weighted mean of train(z_k, client i) over the group    traffic `down` and `up`
    edge servers -> server    x <- weighted mean of z_k                traffic `edge`

HierFAVG (Liu, Zhang, Song and Letaief 2020, "Client-edge-cloud hierarchical federated learning", arXiv 1905.06641;
recalled, not read again). A group weighs as its clients do together. With one inner round and lossless messages this is
FedAvg: a mean of means with the right weights is the mean. A group without a usable client in a round keeps its model,
and has no weight where it has none in the last.

Clients and edge servers use the run's codecs, edge servers and the server the codec `edge`; each edge server has codecs
with states of their own. Client i belongs to group i mod K, or to the block of consecutive numbers that it lies in.
Time: links of edge servers take none; an inner round ends with the slowest client of all groups.

Memory: every device holds the contributions of the cohort one by one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.parts import ServerState, check_choice
from fedjax8.algorithms.salf import MODEL_STATE
from fedjax8.codecs.none import none
from fedjax8.data.batches import num_steps
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.local import check_not_kept, check_restarts
from fedjax8.types import (
    MODEL,
    Algorithm,
    Array,
    Channel,
    Codec,
    Cohort,
    Contribution,
    Key,
    Link,
    LocalTraining,
    PyTree,
    RoundOutput,
    Variables,
    Way,
)

ASSIGNMENTS = ("modulo", "blocks")
TO_EDGES, FROM_EDGES = "to_edges", "from_edges"
"""Names of the messages between the server and edge servers."""


@checked
def hierarchical(
    local: LocalTraining,
    groups: int = 10,
    *,
    inner_rounds: int = 5,
    edge: Codec | None = None,
    assignment: str = "modulo",
    weighting: str = "examples",
    model_state: str = "average",
) -> Algorithm:
    """Averaging in two levels.

    Args:
      local: the clients' local training.
      groups: K, edge servers.
      inner_rounds: rounds of an edge server and its clients in a round of the server.
      edge: the codec between the server and edge servers, both ways; float32 by default.
      assignment: clients' groups by `modulo` or in `blocks`.
      weighting: clients weigh by `examples` or `uniform`.
      model_state: `average` or `fixed`; see `parts.from_parts`.

    Raises:
      UserError: when a run is set up, if there are fewer clients than groups, privacy is accounted, or attackers would
        change their messages.
    """
    check_choice("assignment", assignment, ASSIGNMENTS)
    check_choice("weighting", weighting, WEIGHTINGS)
    check_choice("model_state", model_state, MODEL_STATE)
    if groups < 1 or inner_rounds < 1:
        raise ValueError(f"groups and inner_rounds must be at least 1; got {groups} and {inner_rounds}")
    check_not_kept(local, "a client's optimizer begins anew in every inner round")
    between = none() if edge is None else edge

    def client(shared: tuple[PyTree, PyTree], own: dict[str, Array], rows: Any, key: Key) -> Contribution:
        received, model = shared
        start = jax.tree.map(lambda x: x[own["group"]], received)
        begun = local.start(Variables(start["params"], start.get("state", model)), rows)
        check_restarts(begun.optimizer)
        # Not `train`, of which an accountant knows one a round.
        out = local.advance(begun, rows, key, 0, num_steps(local.plan, rows.size))
        sent = {"params": out.variables.params} | ({"state": out.variables.state} if "state" in start else {})
        return Contribution(sent, client_weight(weighting, rows.size), own, out.report)

    def round_(link: Link, state: ServerState, cohort: Cohort, key: Key) -> RoundOutput:
        if link.attack.send is not None:
            raise UserError(
                "config.attack: attacks on messages are measured against one model that all start from, and groups "
                "have one each; use label_flip"
            )
        if link.num_clients < groups:
            raise UserError(f"config.algorithm.groups is {groups}, but there are {link.num_clients} clients; lower it")
        down_key, inner_key, up_key = jax.random.split(key, 3)
        of = cohort.ids % groups if assignment == "modulo" else block_of(cohort.ids, link.num_clients, groups)
        of = jnp.minimum(of, groups - 1)
        asked = cohort.remember({"group": of})
        where = link.everyone(jnp.where(cohort.valid, of, groups))
        sizes = jax.ops.segment_sum(jnp.ones_like(where), where, groups + 1)[:groups]
        model = state.variables.state
        tree = {"params": state.variables.params} | ({"state": model} if model_state == "average" else {})
        there = jnp.sum(sizes > 0, dtype=jnp.int32)[None]
        start, link = link.relay(down_key, jax.tree.map(lambda x: x[None], tree), TO_EDGES, there, between)
        models = jax.tree.map(lambda x: jnp.broadcast_to(x[0], (groups, *x.shape[1:])), start)

        def inner(carried: Any, key: Key) -> Any:
            models, states, _, link = carried
            relay_key, client_key = jax.random.split(key)
            now = asked._replace(states=states)
            received, link = link.relay(relay_key, models, MODEL, sizes, to=now)
            collected, states, link = link.collect(client, (received, model), now, client_key)
            weights = jax.ops.segment_sum(collected.weights, where, groups + 1)[:groups]

            def mean(old: Array, every: Array) -> Array:
                factor = collected.weights.reshape(-1, *[1] * (every.ndim - 1))
                total = jax.ops.segment_sum(factor * every, where, groups + 1)[:groups]
                wide = weights.reshape(-1, *[1] * (old.ndim - 1))
                return jnp.where(wide > 0, trees.as_dtype(total / jnp.where(wide > 0, wide, 1.0), old.dtype), old)

            models = jax.tree.map(mean, models, collected.tree)
            return (models, states, weights, link), collected.report | {"clients": collected.clients}

        begun = models, asked.states, jnp.zeros(groups), link
        (models, states, weights, link), reports = jax.lax.scan(inner, begun, jax.random.split(inner_key, inner_rounds))
        heard, link = link.relay(up_key, models, FROM_EDGES, (weights > 0).astype(jnp.int32), between)
        whole = jnp.sum(weights)
        share = jnp.where(whole > 0, weights / jnp.where(whole > 0, whole, 1.0), 0.0)
        average = jax.tree.map(
            lambda x: trees.as_dtype(jnp.tensordot(share, x, 1, precision="highest"), x.dtype), heard
        )
        new = Variables(local.model.project(average["params"]), average.get("state", model))
        after = trees.select(whole > 0, ServerState(new, state.memory), state)
        report = jax.tree.map(lambda x: jnp.sum(x, axis=0), reports)
        report |= {
            "clients": reports["clients"][-1],
            "excluded": jnp.max(reports["excluded"]),
        }  # not once an inner round
        return RoundOutput(after, states | {"algorithm": cohort.memory}, link, report)

    def ways(channels: Sequence[Channel], steps: int, clients: int) -> Sequence[Way]:
        """A client's messages of all inner rounds; those of edge servers, together."""
        most = {TO_EDGES: groups, FROM_EDGES: groups}
        times = {channel: most.get(channel.name, inner_rounds) for channel in channels}
        least = {c: 1 if c.name in most and clients < groups else n for c, n in times.items() if not c.part}
        return least, times

    return Algorithm(
        local,
        lambda variables: ServerState(variables, ()),
        lambda variables: (),
        round_,
        lambda state: state.variables,
        ways=ways,
        steps=lambda size: inner_rounds * num_steps(local.plan, size),
    )


def block_of(ids: Array, num_clients: int, groups: int) -> Array:
    """int32: the block of each client, of `groups` blocks of consecutive numbers that differ by one client at most."""
    size, longer = divmod(num_clients, groups)
    first = longer * (size + 1)  # clients in blocks that have one more; no product of ids leaves int32
    return jnp.where(ids < first, ids // (size + 1), longer + (ids - first) // size)


EXAMPLES = (
    {"groups": 2, "inner_rounds": 2},
    {"groups": 3, "inner_rounds": 1, "assignment": "blocks", "model_state": "fixed"},
)
