"""Centralized training: one model, trained on the rows of all clients at one place. A baseline, not federated.

    x <- x - eta grad of the mean loss of a batch drawn over all rows

as many steps a round as the cohort's clients would take together by the batch plan.

A round so sees about as many rows as one of FedAvg, whose axis of rounds it shares. Every round begins a new order of
all rows; the optimizer and its state go on from round to round.

Traffic: no model travels, so that no bytes are counted. That does not make it free: all rows have left their clients,
once, before the first round. Those bytes are not in the log, and no row stays private.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8.data.batches import num_steps
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.local import check_not_kept
from fedjax8.types import (
    Algorithm,
    Array,
    ClientRows,
    Cohort,
    Key,
    Link,
    LocalTraining,
    Partial,
    Pool,
    PyTree,
    RoundOutput,
    Variables,
)


class CentralState(NamedTuple):
    """State of the central server, which trains alone."""

    variables: Variables
    optimizer: PyTree
    """State of its optimizer."""


@checked
def centralized(local: LocalTraining) -> Algorithm:
    """Centralized training of one model.

    Args:
      local: the model, its optimizer, the size of a batch.

    Rows must be resident, and each belong to one client. Every device computes the same steps.

    Raises:
      UserError: when a run is set up, if clients attack, if rows are streamed or in several clients' windows, or if
        privacy is accounted, since the steps are others than those of the clients' batch plan.
    """
    check_not_kept(local, "the state of a centralized optimizer always goes on from round to round")

    def init(variables: Variables) -> CentralState:
        return CentralState(variables, local.optimizer.init(variables.params))

    def steps_of(_, memory, rows, key):
        return Partial(num_steps(local.plan, rows.size).astype(jnp.float32)), memory

    def round_(link: Link, state: CentralState, cohort: Cohort, key: Key) -> RoundOutput:
        if link.attack.send is not None or link.attack.batch is not None:
            raise UserError("config.attack: centralized training has no clients that could attack; use none")
        count_key, train_key = jax.random.split(key)
        totals, _, states, link = link.on_clients(steps_of, (), cohort, count_key)
        rows = ClientRows(link.pool, jnp.int32(0), jnp.int32(positions(link.pool)))
        begun = local.start(state.variables, rows)._replace(optimizer=state.optimizer)
        done = local.advance(begun, rows, train_key, 0, totals.sum.astype(jnp.int32))
        report = done.report | {"clients": link.count(cohort.reached)}
        return RoundOutput(CentralState(done.variables, done.optimizer), states, link, report)

    return Algorithm(local, init, lambda variables: (), round_, lambda state: state.variables, pooled=True)


def positions(pool: Pool) -> Array | int:
    """Number of positions in the windows of all clients together."""
    return len(next(iter(pool.columns.values()))) if pool.order is None else len(pool.order)


EXAMPLES = ({},)
