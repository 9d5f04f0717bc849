"""Decentralized SGD, combine then adapt: a worker adds its own steps to the mean of what its neighbors had before
theirs.

    y_i <- S local steps from x_i
    x_i <- y_i + sum_j w_ij x_j - x_i

With one step a round it is x_i <- sum_j w_ij x_j - eta g_i(x_i), D-PSGD (Lian et al. 2017, arXiv 1705.09056, algorithm
1; recalled, not read again). In that order a message could travel while its worker trains; here it is charged after the
steps. With a lossy codec all x_j of the sum, the worker's own too, are as decoded, so that the mean of all workers
moves by the mean of their steps whatever the codec does (this form is ours).

Traffic: a worker's model to each who hears it.
"""

from typing import Any

from fedjax8 import trees
from fedjax8.algorithms.workers import Worked, Worker, on_graph
from fedjax8.given import checked
from fedjax8.local import check_not_kept
from fedjax8.topologies import ring
from fedjax8.types import Algorithm, LocalTraining, PyTree, Topology


@checked
def dsgd(local: LocalTraining, topology: Topology | None = None, *, model_state: str = "average") -> Algorithm:
    """Decentralized SGD.

    Args:
      local: the workers' local training; `steps=1` for the published algorithm.
      topology: who hears whom, from `topologies`; a ring by default.
      model_state: see `workers.on_graph`.

    Raises:
      UserError: when a run is set up, if not every client takes part, or the topology has no such number of workers.
    """
    check_not_kept(local, "a worker's optimizer begins anew in every round")

    def work(worker: Worker, rows: Any, key: Any, round_number: Any) -> Worked:
        out = local.train(worker.variables, rows, key)
        return Worked(out.variables, out.report)

    def before(before: Worker, after: Worker) -> dict[str, PyTree]:
        return {"params": before.variables.params}

    return on_graph(
        local, ring() if topology is None else topology, work, rule=toward_mean(1.0), message=before,
        model_state=model_state,
    )  # fmt: skip


def toward_mean(step: float, entry: str = "params") -> Any:
    """The rule y_i + step (mean - own), which keeps the mean of all workers whatever the codec did."""

    def rule(worker: Worker, own: PyTree, mean: PyTree) -> tuple[PyTree, PyTree]:
        change = trees.scale(step, trees.subtract(mean[entry], own[entry]))
        return trees.add(worker.variables.params, change), worker.extra

    return rule


EXAMPLES = ({}, {"model_state": "local"})
