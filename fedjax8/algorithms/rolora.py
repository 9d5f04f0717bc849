"""RoLoRA: clients learn B in one round and A in the next, so that the server's mean is exact and half as much travels.

    round 0, 2, ...     B <- sum_i p_i B_i,   all with the same A
    round 1, 3, ...     A <- sum_i p_i A_i,   all with the same B

Chen et al., arXiv 2409.02346, for a model made by `adapters.lora`: in every round the mean of the products is the
product of the means, as in FFA-LoRA (`lora(learn="b")` under FedAvg, the same as round 0), but A learns too. Other
trained parameters, such as the head, are learned in every round. The paper's text was not at hand: the order of the
factors, and the rest being trained in every round, are this project's reading.

Traffic: up the factor that was learned and the rest; down the other factor, which changed in the round before, and the
rest. A client that misses a round would lack a factor: everyone takes part. With a lossy codec clients
continue from the decoded factors.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.adapters.lora import pairs_of, put_back, replace_factors, take_out
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.fedlora import factor_pairs
from fedjax8.algorithms.parts import ServerState, check_choice
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
    RoundOutput,
    Variables,
    Way,
    each_once,
)

FACTORS = ("a", "b")


@checked
def rolora(local: LocalTraining, first: str = "b", *, weighting: str = "examples") -> Algorithm:
    """Federated LoRA, a factor at a time.

    Args:
      local: local training of a model made by `adapters.lora` with `learn="both"`.
      first: `a` or `b`, learned in round 0. While B is zero, nothing of the loss reaches A.
      weighting: clients weigh by `examples` or `uniform`.

    State of the model is fixed.

    Raises:
      UserError: when a run is set up, if the model has no trained factor pairs.
    """
    check_choice("first", first, FACTORS)
    check_choice("weighting", weighting, WEIGHTINGS)
    order = (first, "a" if first == "b" else "b")

    def init(variables: Variables) -> ServerState:
        """The server's state, with the factors as clients have them."""
        pairs = factor_pairs(variables.params)
        return ServerState(variables, {path: {"a": pair.a, "b": pair.b} for path, pair in pairs.items()})

    def round_of(learned: str, held: str):
        """A round in which everyone has `held` and learns `learned`."""

        def client(shared, own, rows, key) -> Contribution:
            params, other, state = shared
            pool = rows.pool._replace(frozen=put_back(rows.pool.frozen, other))
            out = local.train(Variables(params, state), rows._replace(pool=pool), key)
            return Contribution(out.variables.params, client_weight(weighting, rows.size), own, out.report)

        def run(operands):
            link, state, cohort, key = operands
            down_key, client_key = jax.random.split(key)
            params, known = state.variables.params, state.memory
            received, link = link.broadcast(down_key, take_out(params, learned)[0], cohort, held)
            sent = pairs_of(received)
            known = {path: {learned: pair[learned], held: sent[path][held]} for path, pair in known.items()}
            own = take_out(params, held)[0]
            rest = trees.named_leaves(received)
            start = trees.map_named(lambda name, leaf: rest.get(name, leaf), own)
            start = replace_factors(start, {path: {learned: pair[learned]} for path, pair in known.items()})
            shared = start, take_out(received, held)[1], state.variables.state
            reduced, client_states, link = link.map_clients(client, shared, cohort, client_key, learned)
            with jax.named_scope("server"):
                new = local.model.project(put_back(reduced.mean, take_out(params, held)[1]))
            stepped = ServerState(Variables(new, state.variables.state), known)
            unmoved = state._replace(memory=known)
            report = reduced.report | {"clients": reduced.clients}
            return link, trees.select(reduced.weight > 0, stepped, unmoved), client_states, report

        return run

    def round_(link: Link, state: ServerState, cohort: Cohort, key: Key) -> RoundOutput:
        turns = [round_of(learned, held) for learned, held in (order, order[::-1])]
        even = link.round_number % 2 == 0
        link, state, client_states, report = jax.lax.cond(even, *turns, (link, state, cohort, key))
        return RoundOutput(state, client_states, link, report | {"learns_b": _learns_b(link, order)})

    def ways(channels: Sequence[Channel], steps: int, clients: int) -> Sequence[Way]:
        """Messages of either kind of round: one factor down and the other up."""
        of = lambda learned: [c for c in channels if (c.name == learned) == (c.direction == "up")]
        return [way for learned in order for way in each_once(of(learned), steps, clients)]

    return Algorithm(local, init, lambda variables: (), round_, lambda state: state.variables, everyone=True, ways=ways)


def _learns_b(link: Link, order: tuple[str, str]) -> Array:
    """float32: 1 in rounds in which B is learned, 0 in those of A."""
    return jnp.where(link.round_number % 2 == 0, float(order[0] == "b"), float(order[1] == "b"))


EXAMPLES = ({}, {"first": "a", "weighting": "uniform"})
