"""FedPer: the body of the model is averaged, its last layers are each client's own (Arivazhagan et al. 2019).

    (b_i, h_i) = train((b, h_i), client i);      b <- (1 - eta_s) b + eta_s sum_i p_i b_i,      h_i stays on client i

arXiv 1912.00818, algorithms 1 and 2. Both parts are trained together. The head of a client that has never taken part is
the initial one, the same for all. That is also the head of the global model, whose test accuracy therefore says little:
look at `personal_accuracy`. Weights p_i, eta_s and the choice of payload are FedAvg's here.

Traffic: the body down, the body up per client and round. Every client remembers its head.
"""

from collections.abc import Sequence

from fedjax8.algorithms.aggregators.median import median
from fedjax8.algorithms.fedavg import averaging_server, training_client
from fedjax8.algorithms.parts import from_parts
from fedjax8.algorithms.refinements.none import none
from fedjax8.given import checked
from fedjax8.paths import split
from fedjax8.types import Aggregator, Algorithm, LocalTraining


@checked
def fedper(
    local: LocalTraining,
    private: Sequence[str] | str | None = None,
    *,
    server_learning_rate: float = 1.0,
    payload: str = "params",
    weighting: str = "examples",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Federated averaging of the public part of the parameters.

    Args:
      local: the clients' local training.
      private: patterns on paths of the parameters that each client keeps, such as `("Dense_2", "*/bias")`; None: the
        last layer.
      server_learning_rate, payload, weighting: as in `fedavg`, for the public part.
      model_state, aggregate: see `parts.from_parts`.

    Raises:
      UserError: when a run is set up, if a pattern matches nothing, or if nothing is left to be public.
    """
    client = training_client(local, payload, weighting)
    server = averaging_server(local, payload, server_learning_rate, none())
    return from_parts(
        local, client=client, server=server, model_state=model_state, aggregate=aggregate, private=split(private)
    )


EXAMPLES = ({}, {"private": "*bias", "payload": "update", "server_learning_rate": 0.5}, {"aggregate": median()})
