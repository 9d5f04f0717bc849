"""FedCode: clients and server exchange codebooks alone in most rounds, and cluster numbers too in the others.

Khalilian et al. 2023, "FedCode: Communication-Efficient Federated Learning via Transferring Codebooks" (arXiv
2311.09270). Only the abstract was read; the rest follows the authors' code.

    W-message: codebook z of C values and the cluster of every weight;      C-message: the codebook alone
    down in round r: C where r > r_s and r mod f1 != 0, else W;      up: W where r < r_s or r mod f2 == 0, else C

    client   W: y <- z_g[a_g];      C: y <- nearest value of z_g to each of its own stored weights
             trains y, clusters it, and stores it as it is then (y_k = z_k[a_k])
    server   W: x <- sum_k p_k y_k;     C: x <- nearest value to each of its own weights in the union of all z_k

Consequence: in a C-round up, a weight of the server moves to a neighboring value at most and nothing is averaged, so
that learning reaches the server in W-rounds alone. `stagger` is this project's own answer, at the same number of
bytes over time: the rounds of a client's W-messages are shifted by its number, so that in every round the server hears
whole models from some clients, and averages these.

A client whose stored weights are older than the last W-message it was due (it was not sampled, or is new) gets a
W-message, which is counted. Traffic: 4 C bytes for a C-message; ceil(N ceil(log2 C) / 8) + 4 C for a W-message, and
4 bytes for each value of the batch statistics, which are not clustered (`codecs.codebook`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms import lockstep
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.parts import check_choice
from fedjax8.codecs.codebook import clustering, codebook
from fedjax8.codecs.none import none
from fedjax8.given import checked
from fedjax8.types import (
    MODEL,
    Algorithm,
    Array,
    Channel,
    ClientRows,
    Cohort,
    Contribution,
    Link,
    LocalTraining,
    Partial,
    PyTree,
    RoundOutput,
    Variables,
    Way,
)

CODEBOOK = "codebook"
"""Name of the C-messages."""


class FedCodeMemory(NamedTuple):
    """Memory of a client."""

    model: dict[str, PyTree]
    """`params` and `state` after its last training, clustered."""
    codebooks: tuple[Array, ...]
    """Codebooks of that model."""
    received: Array
    """int32: round, from 1, of the last W-message it got; 0 for none."""
    trained: Array
    """int32: round of its last training."""
    full: Array
    """bool: whether this round's message is a W-message."""


class FedCodeClient(NamedTuple):
    """State of a client between its training and its message."""

    stored: FedCodeMemory
    report: dict[str, Array]
    """Report of its training; zeros where that gave no finite model."""


def full_down(r: Array, start: int, period: int, offset: Array | int = 0) -> Array:
    """bool: whether the message down in round `r`, from 1, is a W-message."""
    return (r <= start) | ((r + offset) % period == 0)


def full_up(r: Array, start: int, period: int, offset: Array | int = 0) -> Array:
    """bool: whether the message up in round `r`, from 1, is a W-message."""
    return (r < start) | ((r + offset) % period == 0)


def last_full_down(r: Array, start: int, period: int, offset: Array | int = 0) -> Array:
    """int32: the last round up to `r` in which the message down was a W-message; 1 at least."""
    return jnp.maximum(jnp.where(r <= start, r, jnp.maximum(start, r - (r + offset) % period)), 1)


@checked
def fedcode(
    local: LocalTraining,
    clusters: int = 64,
    *,
    start_round: int = 2,
    down_period: int = 5,
    up_period: int = 2,
    scope: str = "model",
    cluster_state: bool = False,
    stagger: bool = False,
    weighting: str = "examples",
) -> Algorithm:
    """FedCode, whose messages replace the run's codecs.

    Args:
      local: the clients' local training.
      clusters: C, 2 to 256.
      start_round: r_s.
      down_period: f1, the rounds from one W-message down to the next.
      up_period: f2, likewise up.
      scope: `model`, one codebook for all tensors, as published, or `tensor`.
      cluster_state: whether batch statistics are clustered with the weights, as in the authors' code, or travel as
        float32 in W-messages and stay with the client in C-rounds.
      stagger: shifts each client's rounds by its number; see above.
      weighting: clients weigh by `examples` or `uniform` in W-rounds; in C-rounds alike, as in the authors' code.
    """
    for name, period in (("down_period", down_period), ("up_period", up_period)):
        if period < 1:
            raise ValueError(f"{name} must be at least 1, got {period}")
    if start_round < 0:
        raise ValueError(f"start_round must be at least 0, got {start_round}")
    check_choice("weighting", weighting, WEIGHTINGS)
    whole = codebook(clusters, scope=scope, cluster_state=cluster_state)
    cluster, plain = clustering(clusters, scope=scope, cluster_state=cluster_state), none()

    def init_client(variables: Variables) -> FedCodeMemory:
        model = {"params": variables.params, "state": variables.state}
        books = trees.zeros_like(jax.eval_shape(cluster.codebooks, model))
        return FedCodeMemory(model, books, jnp.int32(0), jnp.int32(0), jnp.bool_(False))

    def train(shared, before: FedCodeClient, rows, key) -> tuple[Partial, FedCodeClient]:
        (received, books, r), own = shared, before.stored
        start = trees.select(own.full, received, cluster.snap(own.model, books))
        start = Variables(local.model.project(start["params"]), start["state"])
        out = local.train(start, rows, key)
        model = {"params": out.variables.params, "state": out.variables.state}
        own_books = cluster.codebooks(model)
        model = cluster.snap(model, own_books)
        stored = FedCodeMemory(model, own_books, jnp.where(own.full, r, own.received), r, own.full)
        return Partial(()), FedCodeClient(stored, lockstep.nan_if_unusable(out.report, out.variables))

    def sent(r, own: FedCodeClient, rows, tree: PyTree, weighting: str) -> Contribution:
        """The contribution of a client; of weight 0, with its stored model, where training gave no finite one."""
        failed = own.stored.trained != r
        weight = jnp.where(failed, 0.0, client_weight(weighting, rows.size))
        return Contribution(tree, weight, own, own.report | {"failed": failed.astype(jnp.int32)})

    def send_model(r, own: FedCodeClient, rows, key) -> Contribution:
        return sent(r, own, rows, own.stored.model, weighting)

    def send_codebooks(r, own: FedCodeClient, rows, key) -> Contribution:
        return sent(r, own, rows, {"codebooks": own.stored.codebooks}, "uniform")

    def to_union(tree: PyTree, books: tuple[Array, ...], there: Array) -> PyTree:
        """Every clustered value to the nearest in the union of the codebooks `[M, C]` of those who are there."""
        known = [jnp.where(there[:, None], x, jnp.max(jnp.where(there[:, None], x, -jnp.inf))) for x in books]
        return cluster.snap(tree, tuple(jnp.sort(x.reshape(-1)) for x in known))

    def round_(link: Link, state: Variables, cohort: Cohort, key) -> RoundOutput:
        r, valid = link.round_number + 1, cohort.valid
        offset = cohort.ids if stagger else 0
        down_key, train_key, up_key = jax.random.split(key, 3)
        tree = {"params": state.params, "state": state.state}

        stored = cohort.memory
        needs = stored.received < last_full_down(r, start_round, down_period, offset)
        received, link = link.broadcast(down_key, tree, cohort._replace(valid=valid & needs), MODEL, whole)
        books = {"codebooks": cluster.codebooks(tree)}
        books, link = link.broadcast(down_key, books, cohort._replace(valid=valid & ~needs), CODEBOOK, plain)

        some_rows = ClientRows(link.pool, cohort.start[0], cohort.size[0])
        report = lockstep.on_all(cohort.ids, lockstep.no_report(local, state, some_rows))
        before = FedCodeClient(stored._replace(full=needs), report)
        cohort = cohort._replace(states=cohort.states | {"algorithm": before})
        _, _, states, link = link.on_clients(train, (received, books["codebooks"], r), cohort, train_key)

        sends = valid & full_up(r, start_round, up_period, offset)

        def models(operands):
            link, states = operands
            now = cohort._replace(valid=sends, states=states)
            reduced, states, link = link.map_clients(send_model, r, now, up_key, MODEL, whole)
            return link, states, (reduced.mean, reduced.weight, reduced.clients, reduced.report)

        def no_models(operands):
            return *operands, trees.zeros_like(jax.eval_shape(models, operands)[2])

        any_models = link.count(sends) > 0
        link, states, (mean, weight, senders, report) = jax.lax.cond(any_models, models, no_models, (link, states))
        now = cohort._replace(valid=valid & ~sends, states=states)
        collected, states, link = link.collect(send_codebooks, r, now, up_key, CODEBOOK, plain)

        with jax.named_scope("server"):
            there = collected.weights > 0
            snapped = trees.select(jnp.any(there), to_union(tree, collected.tree["codebooks"], there), tree)
            new = trees.select(weight > 0, mean, snapped)
        report = trees.add(report, collected.report)
        failed = report.pop("failed")
        report |= {"excluded": report["excluded"] + failed, "clients": senders + collected.clients - failed}
        states = states | {"algorithm": states["algorithm"].stored}
        return RoundOutput(Variables(local.model.project(new["params"]), new["state"]), states, link, report)

    def ways(channels: Sequence[Channel], steps: int, clients: int) -> Sequence[Way]:
        """Each combination of one kind of message up and one kind down."""
        downs, ups = ([c for c in channels if c.direction == direction] for direction in ("down", "up"))
        return [{down: 1, up: 1} for down in downs for up in ups]

    return Algorithm(local, lambda variables: variables, init_client, round_, lambda state: state, ways=ways)


EXAMPLES = ({}, {"clusters": 8, "down_period": 1, "up_period": 1}, {"clusters": 16, "stagger": True})
