"""Decentralized federated averaging: workers train, send their model to their neighbors, and take the weighted mean.

    y_i <- S local steps from x_i
    x_i <- sum_j w_ij y_j

Sun, Li and Wang 2021, "Decentralized Federated Averaging", arXiv 2104.11375, algorithm 1 (recalled, not read again).
With `momentum` in the workers' SGD, which begins anew in every round, it is their DFedAvgM; with an 8-bit codec a form
of their quantized one, whose workers encode differences to the last model instead (see `choco`). One local step a round
is decentralized SGD in the order adapt, then combine; `dsgd` has the other order.

On the complete graph it is FedAvg with uniform weights, to the order of sums.

Traffic: a worker's model to each who hears it.
"""

from typing import Any

from fedjax8.algorithms.workers import Worked, Worker, on_graph
from fedjax8.given import checked
from fedjax8.local import check_not_kept
from fedjax8.topologies import Topology, ring
from fedjax8.types import Algorithm, LocalTraining


@checked
def dfedavg(local: LocalTraining, topology: Topology | None = None, *, model_state: str = "average") -> Algorithm:
    """Averaging over a graph.

    Args:
      local: the workers' local training.
      topology: who hears whom, from `topologies`; a ring by default.
      model_state: see `workers.on_graph`.

    Raises:
      UserError: when a run is set up, if not every client takes part, or the topology has no such number of workers.
    """
    check_not_kept(local, "a worker's optimizer begins anew in every round")

    def work(worker: Worker, rows: Any, key: Any, round_number: Any) -> Worked:
        out = local.train(worker.variables, rows, key)
        return Worked(out.variables, out.report)

    return on_graph(local, ring() if topology is None else topology, work, model_state=model_state)


EXAMPLES = ({}, {"model_state": "local"})
