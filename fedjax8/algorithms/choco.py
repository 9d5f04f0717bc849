"""CHOCO-SGD: compressed gossip with replicas, which converges with any codec that contracts.

    y_i    <- local steps from x_i
    q_i    = Q(y_i - xhat_i), sent to all who hear i;     xhat_i <- xhat_i + q_i   there and here
    x_i    <- y_i + gamma (sum_j w_ij xhat_j - xhat_i)

Koloskova, Stich and Jaggi 2019, "Decentralized stochastic optimization and gossip algorithms with compressed
communication", arXiv 1902.00340, algorithm 2 (recalled, not read again). xhat_i begins at 0. The codec Q is the run's
uplink; the difference and the replica are the codec `delta` around it, so that it must contract, or do so once it is
scaled (see there). gamma must be small where Q keeps little.

The mean of all workers moves by the mean of their steps alone, whatever the codec does. With a lossless codec and gamma
= 1 it is `dfedavg`.

Traffic: a difference to each who hears the worker. All who hold a replica of worker i hold the same one, so that the
simulator keeps one of each; a real worker has one for each neighbor. A worker that is not heard in a round leaves its
replica, and takes no part in that round's mean.
"""

from typing import Any

from fedjax8.algorithms.dsgd import toward_mean
from fedjax8.algorithms.workers import Worked, Worker, on_graph
from fedjax8.codecs.delta import delta
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.local import check_not_kept
from fedjax8.topologies import ring
from fedjax8.types import Algorithm, Codec, LocalTraining, PyTree, Topology

REPLICA = "replica"
"""Entry of the messages. Not `params`, under which learned clips would be read as the scales of a difference."""


@checked
def choco(
    local: LocalTraining, topology: Topology | None = None, *, gamma: float = 0.5, model_state: str = "average"
) -> Algorithm:
    """Compressed gossip.

    Args:
      local: the workers' local training.
      topology: who hears whom, from `topologies`; a ring by default.
      gamma: the consensus step, above 0 and at most 1.
      model_state: see `workers.on_graph`.

    Raises:
      UserError: when a run is set up, if the uplink codec does not contract, not every client takes part, or the
        topology has no such number of workers.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must be above 0 and at most 1, got {gamma}")
    check_not_kept(local, "a worker's optimizer begins anew in every round")

    def work(worker: Worker, rows: Any, key: Any, round_number: Any) -> Worked:
        out = local.train(worker.variables, rows, key)
        return Worked(out.variables, out.report)

    def message(before: Worker, after: Worker) -> dict[str, PyTree]:
        return {REPLICA: after.variables.params}

    def differences(codec: Codec) -> Codec:
        try:
            return delta(codec)
        except ValueError as error:
            raise UserError(f"config.uplink: choco sends differences: {error}") from error

    return on_graph(
        local,
        ring() if topology is None else topology,
        work,
        rule=toward_mean(gamma, REPLICA),
        message=message,
        coded=differences,
        model_state=model_state,
    )


EXAMPLES = ({}, {"gamma": 1.0, "model_state": "local"})
