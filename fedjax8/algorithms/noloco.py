"""NoLoCo: workers train for many steps, then meet one other at random, with an outer momentum and a pull to each other.

    D_i     = local steps from theta_i, new minus old
    delta_i <- alpha delta_i + beta mean(D_j) - gamma (theta_i - mean(theta_j))      means over the worker and its peer
    theta_i <- theta_i + delta_i

Kolehmainen et al. 2025, "NoLoCo: No-all-reduce low communication training method for large models", arXiv 2506.10911,
as recalled, not read again: a DiLoCo whose all-reduce is a mean over a random pair, and whose momentum has a term that
keeps workers together. Defaults are DiLoCo's alpha = 0.9 and beta = 0.7, and gamma = 0.5, chosen here. There the inner
optimizer goes on from round to round; here it begins anew.

With alpha = 0, beta = gamma = 1 a worker takes the mean of theta_j + D_j over the pair, as `dfedavg` does.

Traffic: a model and a change to each who hears the worker. Memory: three models a worker.
"""

from typing import Any, NamedTuple

from fedjax8 import trees
from fedjax8.algorithms.workers import Worked, Worker, on_graph
from fedjax8.given import checked
from fedjax8.local import check_not_kept
from fedjax8.topologies import matching
from fedjax8.types import Algorithm, LocalTraining, PyTree, Topology, Variables


class Outer(NamedTuple):
    """A worker's memory beside its model."""

    momentum: PyTree
    """delta_i, float32."""
    start: PyTree
    """theta_i as of the start of the round."""


@checked
def noloco(
    local: LocalTraining,
    topology: Topology | None = None,
    *,
    alpha: float = 0.9,
    beta: float = 0.7,
    gamma: float = 0.5,
    model_state: str = "average",
) -> Algorithm:
    """Random pairs with an outer momentum.

    Args:
      local: the workers' local training.
      topology: who hears whom, from `topologies`; a new random matching in every round by default.
      alpha: factor of the momentum, from 0 to below 1.
      beta: outer step, above 0.
      gamma: pull to the mean, from 0 to 1.
      model_state: see `workers.on_graph`.

    Raises:
      UserError: when a run is set up, if not every client takes part, or the topology has no such number of workers.
    """
    if not (0 <= alpha < 1 and 0 < beta < float("inf") and 0 <= gamma <= 1):
        raise ValueError(
            f"alpha must be from 0 to below 1, beta above 0 and gamma from 0 to 1; got {alpha}, {beta} and {gamma}"
        )
    check_not_kept(local, "a worker's optimizer begins anew in every round")

    def start(variables: Variables) -> Outer:
        return Outer(trees.zeros_like(variables.params), variables.params)

    def work(worker: Worker, rows: Any, key: Any, round_number: Any) -> Worked:
        out = local.train(worker.variables, rows, key)
        return Worked(out.variables, out.report, worker.extra._replace(start=worker.variables.params))

    def message(before: Worker, after: Worker) -> dict[str, PyTree]:
        params = before.variables.params
        return {"params": params, "update": trees.subtract(after.variables.params, params)}

    def rule(worker: Worker, own: PyTree, mean: PyTree) -> tuple[PyTree, PyTree]:
        momentum, theta = worker.extra
        pull = trees.scale(gamma, trees.subtract(theta, mean["params"]))
        step = trees.subtract(trees.add(trees.scale(alpha, momentum), trees.scale(beta, mean["update"])), pull)
        return trees.add(theta, step), Outer(step, theta)

    return on_graph(
        local,
        matching() if topology is None else topology,
        work,
        rule=rule,
        message=message,
        init_extra=start,
        model_state=model_state,
    )


EXAMPLES = ({}, {"alpha": 0.0, "beta": 1.0, "gamma": 1.0, "model_state": "local"})
