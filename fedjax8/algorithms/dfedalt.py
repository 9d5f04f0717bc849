"""DFedAlt: workers share a body over a graph and keep a head; they fit the head, then the body, then mix the body.

    v_i <- tau epochs of steps on v_i at (u_i, v_i), u_i held
    u_i <- the batch plan's steps on u_i at (u_i, v_i), v_i held;      u_i <- sum_j w_ij u_j

Shi et al. 2023, arXiv 2305.15157 (DFedAlt and DFedSalt, later DFedMDC and DFedSMDC), of which the abstract was read;
the alternation is that of the public code of a sibling method (DFedPGP), which has separate epochs for both parts. With
`order="simultaneous"` (FedSim of the centralized ancestor, Pillutla et al. 2022) both parts take the batch plan's steps
together. Part of the model, order and epochs are `fedrep`'s, over a graph in place of a server.

On the complete graph it is `fedrep` with equal weights. Look at `personal_accuracy`.

Traffic: the body to each who hears the worker.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedrep import MOST_EPOCHS, PRIVATE, PUBLIC, train_part
from fedjax8.algorithms.lockstep import squared_norm
from fedjax8.algorithms.parts import check_choice
from fedjax8.algorithms.workers import Worked, Worker, on_graph
from fedjax8.data.batches import num_steps, steps_per_epoch
from fedjax8.given import checked
from fedjax8.local import check_not_kept
from fedjax8.paths import split
from fedjax8.topologies import ring
from fedjax8.types import Adjust, Algorithm, Array, Batch, ClientRows, Key, LocalTraining, PyTree, Topology, Variables

ORDERS = ("alternate", "simultaneous")


@checked
def dfedalt(
    local: LocalTraining,
    topology: Topology | None = None,
    *,
    private: Sequence[str] | str | None = None,
    order: str = "alternate",
    head_epochs: int = 1,
    model_state: str = "average",
) -> Algorithm:
    """A shared body over a graph.

    Args:
      local: the workers' local training.
      topology: who hears whom, from `topologies`; a ring by default.
      private: patterns on paths of the parameters that each worker keeps; None: the last layer.
      order: `alternate` or `simultaneous`.
      head_epochs: tau, with order `alternate`.
      model_state: see `workers.on_graph`.

    Raises:
      UserError: when a run is set up, if a pattern matches nothing, not every client takes part, or the topology has no
        such number of workers.
    """
    return alternating(local, topology, private, order, head_epochs, model_state, None)


def alternating(
    local: LocalTraining,
    topology: Topology | None,
    private: Sequence[str] | str | None,
    order: str,
    head_epochs: int,
    model_state: str,
    rho: float | None,
) -> Algorithm:
    """`dfedalt`, or with `rho` `dfedsalt`."""
    check_choice("order", order, ORDERS)
    if not 1 <= head_epochs <= MOST_EPOCHS:
        raise ValueError(f"head_epochs must be from 1 to {MOST_EPOCHS}, got {head_epochs}")
    if order == "simultaneous" and head_epochs != 1:
        raise ValueError(f"head_epochs={head_epochs} has no meaning with order='simultaneous'; leave it out")
    check_not_kept(local, "a worker's optimizer begins anew with each part of the model")
    cut, alternate = split(private), order == "alternate"
    gradients_a_step = 1 if rho is None else 2

    def head_steps(size: Array) -> Array:
        return head_epochs * steps_per_epoch(local.plan, size) if alternate else jnp.zeros_like(size)

    def work(worker: Worker, rows: ClientRows, key: Key, round_number: Array) -> Worked:
        start = worker.variables
        adjust = (lambda gradients, *_: gradients) if rho is None else sharp(local, cut, rho, start, rows)
        if not alternate:
            out = local.train(start, rows, key, adjust=adjust)
            return Worked(out.variables, out.report)
        head_key, body_key = jax.random.split(key)
        fitted = train_part(local, cut, PRIVATE, start, rows, head_key, head_steps(rows.size))
        count = num_steps(local.plan, rows.size)
        done = train_part(local, cut, PUBLIC, fitted.variables, rows, body_key, count, adjust)
        return Worked(done.variables, trees.add(fitted.report, done.report))

    return on_graph(
        local,
        ring() if topology is None else topology,
        work,
        private=cut,
        model_state=model_state,
        steps=lambda size: head_steps(size) + gradients_a_step * num_steps(local.plan, size),
    )


def sharp(local: LocalTraining, cut: Any, rho: float, start: Variables, rows: ClientRows) -> Adjust:
    """Gradients of the public part at u + rho g / ||g||, g its gradient at u; those of the private part as they are."""

    def adjust(gradients: PyTree, params: PyTree, batch: Batch, key: Key) -> PyTree:
        public, own = cut.cut(params)
        ascent, head = cut.cut(gradients)
        norm = jnp.sqrt(squared_norm(ascent))
        factor = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1.0), 0.0)
        there = cut.merge(trees.add(public, trees.scale(factor, ascent)), own)
        found, _ = cut.cut(local.gradient(start._replace(params=there), rows, batch, key))
        merged: PyTree = cut.merge(found, head)
        return merged

    return adjust


EXAMPLES = ({"private": "head"}, {"private": "*bias", "order": "simultaneous", "model_state": "local"})
