"""HetLoRA: clients of different ranks share one low-rank change of a model.

    down    client i gets the first r_i columns of A and rows of B
    up      the same after training
    server  A <- sum_i w_i [A_i, 0],   B <- sum_i w_i [B_i; 0],   w_i in proportion to |A_i B_i|, layer by layer

Cho et al., arXiv 2401.06432, for a model made by `adapters.lora` whose rank is the largest of the clients'. All other
trained parameters are averaged by examples. All factors are scaled by alpha over that largest rank. The paper's
clients also lower their own rank as they train; here it stays.

In the program every client has factors of the largest rank, of which the columns and rows beyond its own are zero and
have no gradient: one program serves all. Messages are counted at their true size: down a message for each rank, up a
message of `Sections`, blocks of columns and rows between one rank and the next, of which a client sends those it has.
A byte more says which. In the log `float32_bytes` of messages up are those of the largest rank.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from fedjax8 import numerics, trees
from fedjax8.adapters.lora import is_factor, pairs_of, replace_factors
from fedjax8.algorithms import _lora_merge
from fedjax8.algorithms._lora_merge import Factors
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.fedlora import factor_pairs
from fedjax8.algorithms.parts import ServerState, check_choice
from fedjax8.errors import UserError
from fedjax8.given import checked
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
    Sections,
    Variables,
    Way,
)

Pairs = dict[str, Factors]
BLOCKS = "blocks"
"""Name of the factors in a contribution, `Ranked.blocks`."""


@checked
def hetlora(
    local: LocalTraining,
    ranks: Sequence[int] = (2, 4, 8),
    *,
    weighting: str = "examples",
) -> Algorithm:
    """Federated LoRA with ranks of the clients' own.

    Args:
      local: local training of a model made by `adapters.lora` with `learn="both"` and the largest of the ranks.
      ranks: client i has `ranks[i % len(ranks)]`; as many as there are clients give each its own.
      weighting: clients weigh by `examples` or `uniform` in the mean of parameters beside the factors.

    State of the model is fixed. Memory grows with the cohort: every device holds all clients' factors.

    Raises:
      UserError: when a run is set up, if the model has no trained factor pairs, or their rank isn't the largest.
    """
    if not ranks or any(isinstance(r, bool) or not isinstance(r, int) or r < 1 for r in ranks):
        raise ValueError(f"ranks must be whole numbers from 1; got {tuple(ranks)}")
    check_choice("weighting", weighting, WEIGHTINGS)
    distinct = sorted(set(ranks))
    indices = [distinct.index(r) for r in ranks]

    def init(variables: Variables) -> ServerState:
        for path, (a, _) in factor_pairs(variables.params).items():
            if a.shape[-1] != distinct[-1]:
                raise UserError(
                    f"hetlora: the largest rank is {distinct[-1]}, but lora has rank {a.shape[-1]} at {path!r}; they "
                    "must be equal"
                )
        return ServerState(variables, ())

    def client(shared, place, rows, key) -> Contribution:
        params, received, state = shared
        rank = jnp.asarray(distinct)[place]
        pairs = {path: Factors(a[place], b[place]) for path, (a, b) in received.items()}
        own = _with_pairs(params, pairs)

        def within(gradients: PyTree, *_: PyTree) -> PyTree:
            """Gradients, zero beyond the client's rank; without noise they already are."""
            found = factor_pairs(gradients)
            return _with_pairs(gradients, {path: _lora_merge.truncate(pair, rank) for path, pair in found.items()})

        out = local.train(Variables(own, state), rows, key, adjust=within)
        rest, new = _divided(out.variables.params)
        tree = {"params": rest, "blocks": _blocks(new, distinct), "place": place.astype(jnp.uint8)}
        return Contribution(tree, client_weight(weighting, rows.size), place, out.report)

    def round_(link: Link, state: ServerState, cohort: Cohort, key: Key) -> RoundOutput:
        rest_key, rank_key, client_key = jax.random.split(key, 3)
        params, place = state.variables.params, jnp.asarray(indices, jnp.int32)[cohort.ids % len(ranks)]
        rest, pairs = _divided(params)
        rest, link = link.broadcast(rest_key, rest, cohort)
        received = []
        for i, rank in enumerate(distinct):
            cut = {path: Factors(a[..., :rank], b[:rank]) for path, (a, b) in pairs.items()}
            of_rank = cohort._replace(valid=cohort.valid & (place == i))
            cut, link = link.broadcast(jax.random.fold_in(rank_key, rank), cut, of_rank, f"rank{rank}")
            received.append({path: _padded(pair, distinct[-1]) for path, pair in cut.items()})
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *received)

        start = trees.map_named(lambda name, leaf: rest.get(name, leaf), params)
        shared = start, stacked, state.variables.state
        placed = cohort._replace(states=cohort.states | {"algorithm": place})
        codec = _by_rank(link.uplink, len(distinct))
        collected, client_states, link = link.collect(client, shared, placed, client_key, codec=codec)
        with jax.named_scope("server"):
            total = jnp.sum(collected.weights)
            p = collected.weights / jnp.where(total > 0, total, 1.0)
            mean = jax.tree.map(lambda x: jnp.tensordot(p, x, 1), collected.tree["params"])
            merged = {path: _mean_by_norm(pair, p > 0) for path, pair in _joined(collected.tree["blocks"]).items()}
            new = _with_pairs(trees.map_named(lambda name, leaf: mean.get(name, leaf), params), merged)
        stepped = ServerState(Variables(local.model.project(new), state.variables.state), ())
        client_states = client_states | {"algorithm": cohort.memory}
        report = collected.report | {"clients": collected.clients}
        return RoundOutput(trees.select(total > 0, stepped, state), client_states, link, report)

    def ways(channels: Sequence[Channel], steps: int, clients: int) -> Sequence[Way]:
        """Messages of a client of each rank: its factors down, the blocks up to it up."""
        found = []
        for i, rank in enumerate(distinct):
            own = {f"{BLOCKS}:{j}" for j in range(i + 1)}
            may = [c for c in channels if c.name in (MODEL, f"rank{rank}") and _block(c) <= i]
            found += [{c: 1 for c in may if not c.part or c.part in own}, dict.fromkeys(may, 1)]
        return found

    return Algorithm(local, init, lambda variables: (), round_, lambda state: state.variables, ways=ways)


def _block(channel: Channel) -> int:
    """Number of the block that a section of a message up lies in, 0 if it lies in none."""
    found = re.match(rf"{BLOCKS}:(\d+)", channel.part)
    return int(found[1]) if channel.direction == "up" and found else 0


def _divided(params: PyTree) -> tuple[dict[str, Array], Pairs]:
    """(trained parameters beside the factors, by path name; the factors)."""
    rest = {name: leaf for name, leaf in trees.named_leaves(params).items() if not is_factor(name)}
    return rest, {path: Factors(pair["a"], pair["b"]) for path, pair in pairs_of(params).items()}


def _with_pairs(params: PyTree, pairs: Pairs) -> PyTree:
    return replace_factors(params, {path: {"a": pair.a, "b": pair.b} for path, pair in pairs.items()})


def _padded(pair: Factors, rank: int) -> Factors:
    """The pair with zeros in the columns and rows up to this rank."""
    more = rank - pair.b.shape[0]
    return Factors(jnp.pad(pair.a, [(0, 0)] * (pair.a.ndim - 1) + [(0, more)]), jnp.pad(pair.b, [(0, more), (0, 0)]))


def _blocks(pairs: Pairs, distinct: Sequence[int]) -> tuple[Pairs, ...]:
    """Factors cut between one rank and the next."""
    cuts = zip((0, *distinct), distinct, strict=False)
    return tuple({path: Factors(a[..., i:j], b[i:j]) for path, (a, b) in pairs.items()} for i, j in cuts)


def _joined(blocks: Sequence[Pairs]) -> Pairs:
    """Factors of stacked clients, joined from the blocks that `_blocks` cut."""
    return {
        path: Factors(jnp.concatenate([x[path].a for x in blocks], -1), jnp.concatenate([x[path].b for x in blocks], 1))
        for path in blocks[0]
    }


def _mean_by_norm(clients: Factors, valid: Array) -> Factors:
    """The clients' factors `[C, ...]`, weighted by the norms of their products."""
    matrices = _lora_merge.as_matrices(*clients)
    mean = _lora_merge.mean(matrices, _lora_merge.by_norm(matrices, valid.astype(jnp.float32)))
    return mean._replace(a=mean.a.reshape(clients.a.shape[1:]))


@struct.dataclass
class Ranked:
    """Message of a client."""

    rest: Any
    """The inner codec's message of parameters beside the factors."""
    blocks: Sections
    """The inner codec's messages of the blocks, of which a client sends those up to its rank."""


def _by_rank(codec: Codec, count: int) -> Codec:
    """Codec of a contribution: `codec` for the rest and for each of the `count` blocks that the client has."""

    def init(tree):
        return codec.init({"params": tree["params"]}), tuple(map(codec.init, tree["blocks"]))

    def encode(key, state, tree):
        keys, there = jax.random.split(key, 1 + count), jnp.arange(count) <= tree["place"]
        rest, rest_state = codec.encode(keys[0], state[0], {"params": tree["params"]})
        messages, states = [], []
        for i, (block, own) in enumerate(zip(tree["blocks"], state[1], strict=True)):
            message, after = codec.encode(keys[1 + i], own, block)
            messages.append(trees.select(there[i], message, trees.zeros_like(message)))
            states.append(trees.select(there[i], after, own))
        return Ranked(rest, Sections(numerics.pack_bits(there, 1), tuple(messages))), (rest_state, tuple(states))

    def decode(state, message):
        there = numerics.unpack_bits(message.blocks.present, 1, count).astype(bool)
        blocks = [codec.decode(own, part) for own, part in zip(state[1], message.blocks.parts, strict=True)]
        blocks = [trees.select(there[i], block, trees.zeros_like(block)) for i, block in enumerate(blocks)]
        place = (jnp.sum(there) - 1).astype(jnp.uint8)
        return codec.decode(state[0], message.rest) | {"blocks": tuple(blocks), "place": place}

    return Codec(init, encode, decode, codec.unbiased)


EXAMPLES = ({"ranks": (1, 2)}, {"ranks": (2,), "weighting": "uniform"})
