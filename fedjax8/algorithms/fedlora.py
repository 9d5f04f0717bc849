"""Federated LoRA with servers that merge the clients' low-rank changes exactly, for a model made by `adapters.lora`.

Clients train A_i, B_i and all other trained parameters, from the same start, beside the kernel W. With p_i as in FedAvg

    stack      W <- W + s sum_i p_i A_i B_i;                   A drawn anew, B <- 0
    residual   W <- W + s sum_i p_i (A_i - A) (B_i - B);       A <- sum_i p_i A_i, B <- sum_i p_i B_i

s = alpha / r. `stack` is FLoRA (Wang et al., arXiv 2409.05976), `residual` FedEx-LoRA (Singhal et al., arXiv
2410.09432). Both leave a model whose W + s A B is the mean of the clients'. FedAvg over the same model is FedIT, which
is off by the covariance above (`_lora_merge`), and is exact for `lora(learn="b")` and `learn="middle"`.

Traffic: up A, B and the rest. Down the rest, A and B too for `residual`, and after the round the pairs that W changes
by: one of A's and B's size for each client that counted (`stack`), or one less. The new A of `stack` is drawn by all
from the round's seed. W changes, so that a client that misses a round falls behind: everyone takes part.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.adapters.lora import add_to_kernels, is_factor, pairs_of, replace_factors
from fedjax8.algorithms import _lora_merge
from fedjax8.algorithms._lora_merge import Factors
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.parts import ServerState, check_choice
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.types import (
    Algorithm,
    Array,
    Channel,
    Cohort,
    Contribution,
    Key,
    Link,
    LocalTraining,
    PyTree,
    RoundOutput,
    Variables,
    Way,
    each_once,
)

MERGES = ("stack", "residual")
PAIRS = "pairs"
"""Name of the messages by which everyone's kernels change: a pair A, B of every layer, from one client."""


def factor_pairs(params: PyTree) -> dict[str, Factors]:
    """A and B of every layer; UserError unless there are any and both are trained."""
    found = pairs_of(params)
    if not found or any(pair.keys() != {"a", "b"} for pair in found.values()):
        raise UserError(
            "this algorithm handles pairs of trained factors and needs the adapter lora with learn='both'; what one "
            "factor alone or the middle learns, fedavg averages exactly"
        )
    return {path: Factors(pair["a"], pair["b"]) for path, pair in found.items()}


def _fresh(key: Key, pairs: dict[str, Factors]) -> dict[str, dict[str, Array]]:
    """Fresh factors: A uniform within 1 / sqrt(k), B zero."""
    new = {}
    for i, (path, (a, b)) in enumerate(pairs.items()):
        bound = 1.0 / math.sqrt(math.prod(a.shape[:-1]))
        drawn = jax.random.uniform(jax.random.fold_in(key, i), a.shape, minval=-bound, maxval=bound)
        new[path] = {"a": drawn, "b": jnp.zeros_like(b)}
    return new


def _rest(params: PyTree) -> dict[str, Array]:
    """Trained parameters beside the factors, by path name."""
    return {name: leaf for name, leaf in trees.named_leaves(params).items() if not is_factor(name)}


@checked
def fedlora(local: LocalTraining, merge: str = "stack", *, weighting: str = "examples") -> Algorithm:
    """Federated LoRA, merged exactly.

    Args:
      local: local training of a model made by `adapters.lora` with `learn="both"`.
      merge: `stack` (FLoRA; A is drawn uniform within 1 / sqrt(k) each round) or `residual` (FedEx-LoRA).
      weighting: clients weigh by `examples` or `uniform`.

    The server remembers the change of the kernels, `[k, d]` of each adapted layer, which is added to the frozen ones
    before a round (`Algorithm.frozen`). State of the model is fixed. Memory grows with the cohort: every
    device holds all clients' factors.

    Raises:
      UserError: when a run is set up, if the model has no trained factor pairs.
    """
    check_choice("merge", merge, MERGES)
    check_choice("weighting", weighting, WEIGHTINGS)

    def init(variables: Variables) -> ServerState:
        shapes = {path: (*a.shape[:-1], b.shape[-1]) for path, (a, b) in factor_pairs(variables.params).items()}
        return ServerState(variables, {path: jnp.zeros(shape) for path, shape in shapes.items()})

    def client(start, own, rows, key) -> Contribution:
        out = local.train(start, rows, key)
        return Contribution(out.variables.params, client_weight(weighting, rows.size), own, out.report)

    def round_(link: Link, state: ServerState, cohort: Cohort, key: Key) -> RoundOutput:
        down_key, draw_key, client_key, pair_key = jax.random.split(key, 4)
        params = state.variables.params
        if merge == "stack":
            params = replace_factors(params, _fresh(draw_key, factor_pairs(params)))
        sent = _rest(params) if merge == "stack" else trees.named_leaves(params)
        received, link = link.broadcast(down_key, sent, cohort)
        start = state.variables._replace(params=trees.map_named(lambda n, leaf: received.get(n, leaf), params))

        collected, client_states, link = link.collect(client, start, cohort, client_key)
        with jax.named_scope("server"):
            total = jnp.sum(collected.weights)
            p = collected.weights / jnp.where(total > 0, total, 1.0)
            mean = jax.tree.map(lambda x: jnp.tensordot(p, x, 1), collected.tree)
            clients = {path: _lora_merge.as_matrices(*pair) for path, pair in factor_pairs(collected.tree).items()}
            pairs = {path: getattr(_lora_merge, merge)(pair, p) for path, pair in clients.items()}
            needed = p > 0
            if merge == "residual":
                needed &= jnp.arange(len(p)) != _lora_merge.last_of(p)
        change, link = _send_pairs(link, pairs, needed, cohort, pair_key)

        memory = {path: old + change[path].reshape(old.shape) for path, old in state.memory.items()}
        if merge == "stack":  # the changes are in the kernels now
            mean = replace_factors(mean, pairs_of(params))
        stepped = ServerState(Variables(local.model.project(mean), state.variables.state), memory)
        report = collected.report | {"clients": collected.clients}
        return RoundOutput(trees.select(total > 0, stepped, state), client_states, link, report)

    def frozen(state: ServerState, frozen: PyTree) -> PyTree:
        return add_to_kernels(frozen, state.memory)

    variables = lambda state: state.variables

    def ways(channels: Sequence[Channel], steps: int, clients: int) -> Sequence[Way]:
        """Messages with the pairs of none, and of all clients."""
        fewest, most = each_once(channels, steps, clients)
        of_all = {c: clients - (merge == "residual") if c.name == PAIRS else n for c, n in most.items()}
        return {c: n for c, n in fewest.items() if c.name != PAIRS}, of_all

    return Algorithm(local, init, lambda variables: (), round_, variables, everyone=True, frozen=frozen, ways=ways)


def _send_pairs(link, pairs: dict[str, Factors], needed: Array, cohort: Cohort, key: Key):
    """Sends each needed client's pairs to everyone, a message each: (the sum of the products as decoded, link)."""

    def one(i, carried):
        change, link = carried
        pair = jax.tree.map(lambda x: jnp.where(needed[i], x[i], 0.0), pairs)
        receivers = cohort._replace(valid=cohort.valid & needed[i])
        decoded, link = link.broadcast(jax.random.fold_in(key, i), pair, receivers, PAIRS)
        return {path: change[path] + jnp.where(needed[i], got.product, 0.0) for path, got in decoded.items()}, link

    start = {path: jnp.zeros((pair.a.shape[1], pair.b.shape[-1])) for path, pair in pairs.items()}
    return jax.lax.fori_loop(0, len(needed), one, (start, link))


EXAMPLES = ({}, {"merge": "residual", "weighting": "uniform"})
