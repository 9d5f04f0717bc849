"""Facts about the graph of a run's workers, for `about.json`."""

from typing import Any

import numpy as np

from fedjax8.engine.simulation import Simulation
from fedjax8.topologies import disagreement

DRAWN = 128
"""Most workers whose edges are listed."""
MEASURED = 1024
"""Most workers whose mixing matrix is decomposed."""


def graph_facts(simulation: Simulation, private: bool = False) -> dict[str, Any]:
    """{"workers", "messages" a round, "degree" of the worker that hears the most, "changes" from round to round,
    "disagreement" (see `topologies.disagreement`), "edges" of the first round as [sender, receiver]}; empty without a
    graph. Edges, which name clients, are left out where rows are `private`."""
    graph = simulation.algorithm.graph
    if graph is None:
        return {}
    count = simulation.num_clients
    first, second = graph(0, count), graph(1, count)
    neighbors, weights = np.asarray(first.neighbors), np.asarray(first.weights)
    receivers, slots = np.nonzero(weights > 0)
    found: dict[str, Any] = {
        "workers": count,
        "messages": len(receivers),
        "degree": int(np.count_nonzero(weights > 0, axis=1).max(initial=0)),
        "changes": any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True)),
    }
    if count <= MEASURED:
        found["disagreement"] = float(f"{disagreement(first):.4g}")
    if count <= DRAWN and not private:
        senders = neighbors[receivers, slots]
        found["edges"] = sorted([int(a), int(b)] for a, b in zip(senders, receivers, strict=True))
    return found
