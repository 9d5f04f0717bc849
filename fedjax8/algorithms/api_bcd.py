"""Parallel incremental block-coordinate descent: M tokens walk, and those who hold one work at once.

    min over x_1 .. x_N and z    (1/N) sum_i [ f_i(x_i) + tau/2 ||x_i - z||^2 ]

    client i with token m:   its copy of token m <- z_m;     c <- mean of its copies
                             x_i+ ~ argmin f_i(x) + M tau/2 ||x - c||^2        by its local steps from x_i
                             z_m  <- z_m + (x_i+ - x_i) / N                    and on to a neighbor

A client keeps the last copy of every token; M quadratic terms of strength tau have the minimizer of one of strength M
tau at their mean. With M = 1 it is `ibcd`. What it converges to is the optimum of the penalized problem, which is that
of mean f_i only as tau grows.

API-BCD (arXiv 2202.03263) in a form of ours: of the paper the abstract was read. That z_m moves by (x+ - x) / N, and
the copies, are recalled; tau scaled by M follows from the objective; local steps stand for the exact minimizer, and
`participation=walk` for the tokens' asynchronous moves: all M move once a round. The model that is evaluated is the
mean of the tokens; a client's own is x_i.

Traffic: a model for each token and move, from client to client (`peer`), and no broadcast; a move takes the time of the
sender's uplink. The message of a client that drops out or cannot be used is the token as it was. Memory: a client's
model and M copies, for every registered client.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.parts import ServerState
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.local import check_not_kept
from fedjax8.participation import Participants
from fedjax8.types import (
    Algorithm,
    Array,
    ClientRows,
    Cohort,
    Contribution,
    Key,
    Link,
    LocalTraining,
    PyTree,
    RoundOutput,
    Variables,
)

TOKEN = "token"
"""Name of the messages."""


class Visited(NamedTuple):
    """A client's memory."""

    variables: Variables
    """x_i, and the model's state of its last visit."""
    copies: PyTree
    """float32 `[M, ...]`: the tokens as it saw them last."""


class Held(NamedTuple):
    """Memory and token of a client in a round."""

    memory: Visited
    token: Array
    """int32."""


@checked
def api_bcd(local: LocalTraining, tau: float = 1.0, *, tokens: int = 1) -> Algorithm:
    """Walking tokens.

    Args:
      local: the clients' local training, whose steps approach the minimizer.
      tau: the strength of the pull of one token, above 0.
      tokens: M, the run's `cohort_size`; with `participation=walk`.

    Raises:
      UserError: when a run is set up, if the participation has no tokens, or others than M.
    """
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be a number above 0, got {tau}; without a pull clients never hear of each other")
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")
    check_not_kept(local, "a client's problem changes with every visit of a token")

    def stacked(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (tokens, *x.shape)), tree)

    def init(variables: Variables) -> ServerState:
        return ServerState(variables, stacked(variables.params))

    def init_client(variables: Variables) -> Visited:
        return Visited(variables, stacked(variables.params))

    def client(shared: tuple[PyTree, Array], held: Held, rows: ClientRows, key: Key) -> Contribution:
        (zs, num_clients), (memory, token) = shared, held
        z = jax.tree.map(lambda x: x[token], zs)
        copies = jax.tree.map(lambda x, new: x.at[token].set(new), memory.copies, z)
        center = jax.tree.map(lambda x: jnp.mean(x, axis=0), copies)

        def pulled(gradients: PyTree, params: PyTree, *_: PyTree) -> PyTree:
            return jax.tree.map(lambda g, x, c: g + tokens * tau * (x - c), gradients, params, center)

        out = local.train(memory.variables, rows, key, adjust=pulled)
        moved = trees.subtract(out.variables.params, memory.variables.params)
        new = local.model.project(trees.add(z, trees.scale(1.0 / num_clients, moved)))
        copies = jax.tree.map(lambda x, new: x.at[token].set(new), copies, new)
        after = Held(Visited(out.variables, copies), token)
        return Contribution({"params": new}, jnp.float32(1), after, out.report)

    def round_(link: Link, state: ServerState, cohort: Cohort, key: Key) -> RoundOutput:
        if link.attack.send is not None:
            raise UserError(
                "config.attack: a token is no contribution that could be compared with those of others; use label_flip"
            )
        _, client_key, _ = jax.random.split(key, 3)
        at = jnp.zeros_like(cohort.ids) if isinstance(cohort.token, tuple) else cohort.token
        collected, states, link = link.collect(
            client,
            (state.memory, jnp.float32(link.num_clients)),
            cohort.remember(Held(cohort.memory, at)),
            client_key,
            TOKEN,
            direction="peer",
        )
        where = link.everyone(jnp.where(cohort.valid, at, tokens))
        where = jnp.where(collected.weights > 0, where, tokens)
        zs = jax.tree.map(lambda z, new: z.at[where].set(new, mode="drop"), state.memory, collected.tree["params"])
        mean = jax.tree.map(lambda z: jnp.mean(z, axis=0), zs)
        after = ServerState(state.variables._replace(params=mean), zs)
        report = collected.report | {"clients": collected.clients}
        return RoundOutput(after, states | {"algorithm": states["algorithm"].memory}, link, report)

    def admits(participants: Participants) -> None:
        if not participants.participation.tokens or participants.cohort_size != tokens:
            raise UserError(
                f"this algorithm has {tokens} walking token{'s' * (tokens > 1)}: use --config.participation.name=walk "
                f"and --config.cohort_size={tokens} (now {participants.cohort_size})"
            )

    return Algorithm(
        local,
        init,
        init_client,
        round_,
        lambda state: state.variables,
        admits=admits,
        personal=lambda state, memory: memory.variables,
    )


EXAMPLES = ({"tokens": 6}, {"tau": 0.5, "tokens": 6})
