"""Losses of the present model on candidate clients, for participations that choose by them.

One program, compiled once: candidates are dealt over devices as the clients of a round are, and every client adds up
the losses of its own batches, rows in their order and the model as it is evaluated.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.data.batches import steps_per_epoch, take_batch
from fedjax8.engine.feeding import Feed
from fedjax8.engine.planning import deal, laid_out_round
from fedjax8.participation import Participants
from fedjax8.types import ClientRows, Executor, LocalTraining, Partial, Pool, Program, Variables


def losses_program(local: LocalTraining, executor: Executor) -> Program:
    """`(columns, order, variables), rows -> (), losses [shards, 1, c]`, for `executor.compile`; `rows` as of a call."""
    model, plan = local.model, local.plan._replace(sampling="shuffled")

    def program(shared, rows):
        columns, order, variables = shared
        rows = jax.tree.map(lambda x: x[0], rows)
        pool = Pool(columns or rows.columns, order)

        def one(shared, client):
            pool, variables = shared
            own = ClientRows(pool, *client)

            def add_batch(index, total):
                batch = take_batch(plan, own, None, index)
                outputs, _ = model.apply(variables, batch)
                return total + jnp.sum(jnp.where(batch["mask"] > 0, model.loss(outputs, batch), 0.0))

            total = jax.lax.fori_loop(0, steps_per_epoch(plan, own.size), add_batch, jnp.float32(0))
            return Partial(()), total / jnp.maximum(own.size, 1)

        _, losses = executor.map_reduce(one, (pool, variables), (rows.starts[0], rows.sizes[0]))
        return (), losses[None]

    return program


def client_losses(
    ids: np.ndarray,
    compiled: Program,
    feed: Feed,
    executor: Executor,
    participants: Participants,
    variables: Variables,
) -> np.ndarray:
    """float32 `[n]`: mean loss of `variables` over the rows of each client, 0 for one without rows.

    Args:
      ids: `[n]`, different clients. Another n is another program.
      compiled: a `losses_program`, compiled.
      feed: the feed of the clients' rows.
      executor: the one it was compiled for.
      participants: of the run.
      variables: the model, frozen parameters included.
    """
    sizes = participants.clients.windows(ids)[1]
    found = deal(participants.steps(sizes), executor.num_shards, executor.chunk)
    assert found is not None  # no client must be anywhere
    rows = feed.prepare(laid_out_round(np.append(ids, participants.num_clients)[found.positions], participants))
    _, parts = compiled((feed.columns, feed.order, variables), rows)
    of_place = np.asarray(executor.collect(parts)).reshape(found.positions.shape)
    losses, real = np.zeros(len(ids), np.float32), found.positions >= 0
    losses[found.positions[real]] = of_place[real]
    return losses
