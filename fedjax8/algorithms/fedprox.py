"""FedProx: clients are held near the model they received (Li et al. 2020, arXiv 1812.06127, algorithm 2).

    client i minimizes f_i(y) + mu/2 ||y - x||^2, that is, steps along grad f_i(y) + mu (y - x);      server as FedAvg

Clients may do unequal amounts of work; with mu = 0 this is FedAvg bit for bit. It is `fedavg(proximal(local, mu))`;
every other algorithm takes such a local training too.
"""

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.refinements.base import Refinement
from fedjax8.given import checked
from fedjax8.local import proximal
from fedjax8.types import Aggregator, Algorithm, LocalTraining


@checked
def fedprox(
    local: LocalTraining,
    mu: float = 0.01,
    *,
    server_learning_rate: float = 1.0,
    payload: str = "params",
    weighting: str = "examples",
    model_state: str = "average",
    refine: Refinement | None = None,
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """FedAvg with a proximal term of strength `mu` (usual search set 0.001, 0.01, 0.1, 1); the rest as in `fedavg`."""
    return fedavg(
        proximal(local, mu),
        server_learning_rate,
        payload=payload,
        weighting=weighting,
        model_state=model_state,
        refine=refine,
        aggregate=aggregate,
    )


EXAMPLES = ({}, {"mu": 1.0})
