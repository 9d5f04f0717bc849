"""IFCA: k models, of which every client trains the one that suits its rows best.

    client   j = argmin_j loss_i(x_j) over all of its rows;     trains x_j, and sends its update as part j
    server   x_j <- x_j + eta_s mean of the updates of those who chose j

Ghosh, Chung, Yin and Ramchandran 2020, "An efficient framework for clustered federated learning", arXiv 2006.04088,
algorithm 1 with model averaging (recalled, not read again). A model that nobody chose keeps its value. Models begin
apart: equal ones would stay equal. x_1 is the model as initialized, the others have Gaussian noise in each array, of
`spread` times its standard deviation (ours; the paper draws them at random).

The model that is evaluated is the one that most clients chose in the last round; a client's own is the one that it
chose last, or that model before it has. Look at `personal_accuracy`. Model state is that of all clients together.

Traffic: k models down; up one update, and a bit for each model. Each of the k losses is charged a third of a step a
batch. Memory: a number for every registered client. With k = 1 it is FedAvg.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.parts import ServerState, check_choice
from fedjax8.algorithms.salf import MODEL_STATE
from fedjax8.data.batches import num_steps, steps_per_epoch
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

UPDATE = "update"
MOST_CLUSTERS = 64


class Clusters(NamedTuple):
    """The server's memory."""

    params: tuple[PyTree, ...]
    """k models, float32."""
    counts: Array
    """int32 `[k]`: clients that chose each in the last round."""


@checked
def ifca(
    local: LocalTraining,
    clusters: int = 2,
    *,
    spread: float = 0.5,
    server_learning_rate: float = 1.0,
    weighting: str = "examples",
    model_state: str = "average",
    seed: int = 0,
) -> Algorithm:
    """Clusters of clients, each with a model.

    Args:
      local: the clients' local training.
      clusters: k, from 1 to MOST_CLUSTERS.
      spread: noise of the models at the beginning, above 0, in standard deviations of each array.
      server_learning_rate: eta_s.
      weighting: clients weigh by `examples` or `uniform`.
      model_state: `average` or `fixed`; see `parts.from_parts`.
      seed: of that noise, apart from the run's.

    Raises:
      UserError: in the first round, if privacy is accounted, since a client reads the loss of its rows.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    check_choice("model_state", model_state, MODEL_STATE)
    if not 1 <= clusters <= MOST_CLUSTERS or not 0 < spread < float("inf"):
        raise ValueError(f"clusters must be from 1 to {MOST_CLUSTERS} and spread above 0; got {clusters} and {spread}")
    check_not_kept(local, "a client's model may be another one in every round")

    def init(variables: Variables) -> ServerState:
        keys = [jax.random.fold_in(random_key(seed), j) for j in range(clusters)]
        models = tuple(
            variables.params if j == 0 else _apart(key, variables.params, spread) for j, key in enumerate(keys)
        )
        models = tuple(local.model.project(params) for params in models)
        return ServerState(variables, Clusters(models, jnp.zeros(clusters, jnp.int32)))

    def client(shared, own, rows, key) -> Contribution:
        received, model = shared
        state = received.get("state", model)
        losses = jnp.stack([local.mean_loss(Variables(params, state), rows) for params in received["params"]])
        chosen = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses)).astype(jnp.int32)
        start = jax.tree.map(lambda *of: jnp.stack(of)[chosen], *received["params"])
        out = local.train(Variables(start, state), rows, key)
        update, there = trees.subtract(out.variables.params, start), jnp.arange(clusters) == chosen
        sent = {UPDATE: tuple(trees.select(there[j], update, trees.zeros_like(update)) for j in range(clusters))}
        sent |= {"state": out.variables.state} if "state" in received else {}
        return Contribution(sent, client_weight(weighting, rows.size), chosen, out.report, {UPDATE: there})

    def round_(link: Link, state: ServerState, cohort: Cohort, key: Key) -> RoundOutput:
        down_key, client_key, _ = jax.random.split(key, 3)
        model = state.variables.state
        tree = {"params": state.memory.params} | ({"state": model} if model_state == "average" else {})
        received, link = link.broadcast(down_key, tree, cohort)
        losses = clusters * steps_per_epoch(local.plan, cohort.size) / 3
        reduced, client_states, link = link.map_clients(
            client,
            (received, model),
            cohort,
            client_key,
            origin={"state": received["state"]} if "state" in received else {},
            steps=num_steps(local.plan, cohort.size) + (losses if clusters > 1 else 0),
        )
        choices = client_states["algorithm"]
        counts = jnp.stack([link.count(cohort.reached & (choices == j)) for j in range(clusters)])
        with jax.named_scope("server"):
            new = tuple(
                local.model.project(trees.add(params, trees.scale(server_learning_rate, mean)))
                for params, mean in zip(state.memory.params, reduced.mean[UPDATE], strict=True)
            )
            counts = jnp.where(reduced.weight > 0, counts, state.memory.counts)
            largest = jax.tree.map(lambda *of: jnp.stack(of)[jnp.argmax(counts)], *new)
            stepped = ServerState(Variables(largest, reduced.mean.get("state", model)), Clusters(new, counts))
        after = trees.select(reduced.weight > 0, stepped, state)
        report: dict[str, Any] = reduced.report | {"clients": reduced.clients}
        report |= {"largest_cluster": Ratio(jnp.max(counts), jnp.sum(counts))}
        return RoundOutput(after, client_states, link, report)

    def personal(state: ServerState, own: Array) -> Variables:
        chosen = jnp.where(own >= 0, own, jnp.argmax(state.memory.counts))
        params = jax.tree.map(lambda *of: jnp.stack(of)[chosen], *state.memory.params)
        return state.variables._replace(params=params)

    return Algorithm(
        local, init, lambda variables: jnp.int32(-1), round_, lambda state: state.variables, personal=personal
    )


def _apart(key: Key, params: PyTree, spread: float) -> PyTree:
    """`params` with noise, of `spread` times the standard deviation of each array; of constant ones, `spread`."""
    leaves, structure = jax.tree.flatten(params)

    def moved(key: Key, x: Array) -> Array:
        deviation = jnp.std(x)
        return x + spread * jnp.where(deviation > 0, deviation, 1.0) * jax.random.normal(key, x.shape)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [moved(k, x) for k, x in zip(keys, leaves, strict=True)])


EXAMPLES = ({}, {"clusters": 3, "spread": 1.0, "weighting": "uniform", "model_state": "fixed"})
