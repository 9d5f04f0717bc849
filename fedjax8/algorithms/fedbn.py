"""FedBN: normalization layers stay with the clients, their parameters and their statistics; the rest is FedAvg.

Li et al. 2021, "FedBN: Federated learning on non-IID features via local batch normalization", arXiv 2102.07623
(recalled, not read again), for clients whose inputs differ. Layers are found by their names, which have `Norm` or
`norm` in them as flax's do; layer and group normalization, which have no statistics, are kept as well. It is `fedper`
with another private part, and a model's state that stays. Look at `personal_accuracy`.

Traffic: as FedAvg without these parameters. Memory: these parameters and statistics for every registered client.
"""

from collections.abc import Sequence

from fedjax8.algorithms.fedavg import averaging_server, training_client
from fedjax8.algorithms.parts import from_parts
from fedjax8.algorithms.refinements.none import none
from fedjax8.given import checked
from fedjax8.paths import split
from fedjax8.types import Aggregator, Algorithm, LocalTraining

NORMS = ("*[Nn]orm*",)
"""Pattern of the paths of normalization layers."""


@checked
def fedbn(
    local: LocalTraining,
    norms: Sequence[str] | str = NORMS,
    *,
    server_learning_rate: float = 1.0,
    payload: str = "params",
    weighting: str = "examples",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Federated averaging without the normalization layers.

    Args:
      local: the clients' local training.
      norms: patterns on paths of the parameters of normalization layers.
      server_learning_rate, payload, weighting: as in `fedavg`.
      aggregate: see `parts.from_parts`.

    Raises:
      UserError: when a run is set up, if the model has no such layer, or nothing else.
    """
    client = training_client(local, payload, weighting)
    server = averaging_server(local, payload, server_learning_rate, none())
    return from_parts(
        local, client=client, server=server, model_state="local", aggregate=aggregate, private=split(norms)
    )


EXAMPLES = ({"norms": "*bias"}, {"norms": "*bias", "payload": "update", "weighting": "uniform"})
