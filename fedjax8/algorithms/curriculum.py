"""A curriculum in phases: easy examples first, by quantiles of the loss over all clients' examples.

This is not FedCL (arXiv 2211.07248, of which the abstract alone was read). That orders examples by a curriculum which
the server learns with an auto-regressive auto-encoder; here an example is as hard as its loss. What both share: all
clients go through the same phases together, by one global order.

    every client i:      histogram h_i of the losses of its examples under the model x that it received
    server:              h = sum_i h_i;    limit_k = bin of h in which a share k / phases of all examples is reached
    every client i:      trains on its examples whose loss is in that bin or below, and weighs by their number

    phase k = 1 .. phases, the next one every `rounds_per_phase` rounds; in the last one every example is admitted.

An example is admitted or not by a mask of 0 and 1 in its batch: a batch is drawn over all of a client's examples, and
its loss is the mean over the admitted ones. A step without any moves by the optimizer's momentum alone. Bins have equal
ratios, so that a limit is above the pooled quantile by one bin's ratio at most.

Traffic: FedAvg's, and the histogram up and down, float32 whatever the codec. Losses are taken anew in every round, one
pass over a client's examples and one more forward pass a step; in the last phase neither.
"""

import math

import jax
import jax.numpy as jnp

from fedjax8.algorithms.fedavg import PAYLOADS, WEIGHTINGS, averaging_server, client_weight, training_client
from fedjax8.algorithms.parts import ClientOutput, FirstExchange, check_choice, from_parts, outgoing
from fedjax8.algorithms.refinements.none import none as no_refinement
from fedjax8.codecs.none import none
from fedjax8.data.batches import steps_per_epoch, take_batch
from fedjax8.given import checked
from fedjax8.types import Aggregator, Algorithm, Array, Batch, BatchPlan, ClientRows, LocalTraining, Variables

SCORES = "scores"
"""Name of the messages with histograms."""


@checked
def curriculum(
    local: LocalTraining,
    phases: int = 3,
    *,
    rounds_per_phase: int = 10,
    bins: int = 64,
    smallest: float = 1e-4,
    largest: float = 100.0,
    server_learning_rate: float = 1.0,
    payload: str = "params",
    weighting: str = "examples",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Federated averaging on the examples below a quantile of the loss, which rises phase by phase.

    Args:
      local: the clients' local training.
      phases: 1 is FedAvg.
      rounds_per_phase: rounds after which the next phase begins.
      bins: of the histogram, float32 counts.
      smallest, largest: losses at the ends of the histogram; the first and the last bin hold those beyond.
      weighting: clients weigh by the number of admitted `examples`, or `uniform`.
      server_learning_rate, payload, model_state, aggregate: as in `fedavg`; histograms are always added up.
    """
    check_choice("payload", payload, PAYLOADS)
    check_choice("weighting", weighting, WEIGHTINGS)
    if phases < 1 or rounds_per_phase < 1 or bins < 2:
        raise ValueError(
            f"phases and rounds_per_phase must be at least 1 and bins at least 2; got phases={phases}, "
            f"rounds_per_phase={rounds_per_phase}, bins={bins}"
        )
    if not 0 < smallest < largest < math.inf:
        raise ValueError(f"smallest must be above 0 and below largest; got smallest={smallest}, largest={largest}")

    server = averaging_server(local, payload, server_learning_rate, no_refinement())
    if phases == 1:
        client = training_client(local, payload, weighting)
        return from_parts(local, client=client, server=server, model_state=model_state, aggregate=aggregate)

    def bins_of(start: Variables, rows: ClientRows, batch: Batch) -> Array:
        """int32 `[B]`: bin of each example's loss under `start`."""
        batch = {"mask": jnp.ones(len(jax.tree.leaves(batch)[0]))} | batch
        outputs, _ = local.model.apply(start._replace(frozen=rows.pool.frozen), batch)
        return bin_of(local.model.loss(outputs, batch), bins, smallest, largest)

    def phase(round_number: Array | int) -> Array:
        return jnp.minimum(jnp.asarray(round_number) // rounds_per_phase + 1, phases)

    def score(start, extra, rows, key) -> tuple[dict[str, Array], Array]:
        jax.eval_shape(local.mean_loss, start, rows)  # refused where the accounting does not cover it

        def add(index, counts):
            batch = take_batch(local.plan, rows, None, index)
            return counts.at[bins_of(start, rows, batch)].add(batch["mask"])

        nothing = jnp.zeros(bins, jnp.float32)
        count = lambda: jax.lax.fori_loop(0, steps_per_epoch(local.plan, rows.size), add, nothing)
        histogram = jax.lax.cond(phase(rows.pool.round_number) == phases, lambda: nothing, count)
        return {"histogram": histogram}, client_weight("uniform", rows.size)

    def train(start, extra, memory, rows, key, round_number) -> ClientOutput:
        now = phase(round_number)
        limit = jnp.where(now == phases, bins - 1, limit_of(extra[SCORES]["histogram"], now / phases))

        def admit(batch: Batch) -> Batch:
            batch = rows.change(batch) if rows.change else batch
            below = lambda: (bins_of(start, rows, batch) <= limit).astype(jnp.float32)
            length = len(jax.tree.leaves(batch)[0])
            mask = jax.lax.cond(limit == bins - 1, lambda: jnp.ones(length, jnp.float32), below)
            return batch | {"mask": mask * batch.get("mask", 1.0)}

        easy = rows._replace(change=jax.tree_util.Partial(admit))
        out = local.train(start, easy, key)
        weight = admitted(local.plan, rows.size, out.num_steps, out.report["train_examples"])
        weight = weight if weighting == "examples" else client_weight("uniform", weight)
        sent = outgoing(payload, out.variables.params, start.params)
        return ClientOutput(sent, weight, out.variables, memory, out.report, out.optimizer)

    return from_parts(
        local,
        client=train,
        server=server,
        model_state=model_state,
        aggregate=aggregate,
        first=FirstExchange(SCORES, score, lambda sizes: jnp.int32(steps_per_epoch(local.plan, sizes)), none()),
    )


def bin_of(losses: Array, bins: int, smallest: float, largest: float) -> Array:
    """int32 bins of losses; bin b holds those from `smallest` r^b to below `smallest` r^(b + 1), r the bins' ratio."""
    per_log = bins / math.log(largest / smallest)
    place = jnp.log(jnp.maximum(losses, smallest) / smallest) * per_log
    return jnp.where(jnp.isnan(losses), bins - 1, jnp.clip(place, 0, bins - 1)).astype(jnp.int32)


def limit_of(histogram: Array, share: Array | float) -> Array:
    """int32: the first bin up to which at least this share of the histogram lies.

    Counts below 0, which attackers may send, are taken for 0; where none is left every bin is within the limit.
    """
    reached = jnp.cumsum(jnp.maximum(histogram, 0.0))
    # Of counts up to 2^24 the sums are exact but for the division by the number of clients.
    found = jnp.argmax(reached >= share * reached[-1] * (1 - 1e-5))
    return jnp.where(reached[-1] > 0, found, len(histogram) - 1).astype(jnp.int32)


def admitted(plan: BatchPlan, size: Array, steps: Array, used: Array) -> Array:
    """float32: a client's number of admitted examples, from those that its steps used, and the rows that they saw."""
    per_epoch = jnp.maximum(steps_per_epoch(plan, size), 1)
    seen = steps // per_epoch * size + jnp.minimum(steps % per_epoch * plan.batch_size, size)
    return size * used / jnp.maximum(seen, 1)


EXAMPLES = ({"phases": 2, "rounds_per_phase": 2}, {"phases": 1}, {"payload": "update", "weighting": "uniform"})
