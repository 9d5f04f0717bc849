"""How well the final model serves each client: its accuracy on the client's own rows, `clients.json`.

Test rows where the data set says whose they are and the split keeps them together, else training rows.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax8.data.federated import Dataset, FederatedData, match_test_owners
from fedjax8.engine.simulation import Simulation, SimulationState
from fedjax8.errors import UserError
from fedjax8.running.about import evenly
from fedjax8.types import Model, Variables

CLIENT_ROWS = 200
"""Most rows of a client that are looked at, evenly spaced: an accuracy is then known to about 0.03."""
BATCH_SIZE = 250


def client_accuracy(simulation: Simulation, state: SimulationState, dataset: Dataset, most: int) -> dict[str, Any]:
    """Accuracy of the global model for up to `most` clients, evenly spaced: `{"rows", "clients", "counts",
    "accuracy"}`.

    `rows` says `test` or `train`, `counts` on how many rows the accuracy of a client rests; clients without rows are
    left out. Runs on one device. Raises `UserError` if the model has no metric called accuracy.
    """
    part, held = own_rows(dataset, simulation.data)
    shown = [int(c) for c in evenly(held.num_clients, most)]
    places = [held.rows(c) for c in shown]
    places = [rows[evenly(len(rows), CLIENT_ROWS)] if len(rows) else rows for rows in places]
    counts = np.array([len(rows) for rows in places])
    right = _right(simulation.model, simulation.variables(state), held.columns, np.concatenate(places))
    owner = np.repeat(np.arange(len(shown)), counts)
    sums = np.bincount(owner, weights=right, minlength=len(shown))
    kept = np.flatnonzero(counts)
    return {
        "rows": part,
        "clients": [shown[i] for i in kept],
        "counts": counts[kept].tolist(),
        "accuracy": (sums[kept] / counts[kept]).tolist(),
    }


def own_rows(dataset: Dataset, clients: FederatedData) -> tuple[str, FederatedData]:
    """`test` and the clients' test rows where these are known, else `train` and their training rows."""
    if dataset.test_owners is None or dataset.owners is None or not _owned_once(clients):
        return "train", clients
    owners = np.full(len(dataset.train["y"]), -1, np.int32)
    owners[clients.order] = np.repeat(np.arange(clients.num_clients, dtype=np.int32), clients.sizes)
    try:
        matched = match_test_owners(dataset, owners)
    except UserError:  # the split does not follow natural clients
        return "train", clients
    return "test", FederatedData.from_owners(dataset.test, matched, clients.num_clients)


def _owned_once(clients: FederatedData) -> bool:
    """Whether clients lie one after another in `order` and share no row."""
    ends = np.cumsum(clients.sizes, dtype=np.int64)
    return (
        clients.order is not None
        and np.array_equal(clients.starts, ends - clients.sizes)
        and len(clients.order) == ends[-1] == len(np.unique(clients.order))
    )


def _right(model: Model, variables: Variables, columns: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """float64 `[len(rows)]`: the accuracy of each row."""

    @jax.jit
    def of_batch(variables, batch):
        metrics = model.metrics(model.apply(variables, batch)[0], batch)
        if "accuracy" not in metrics:
            raise UserError("--client_accuracy: the model has no metric called accuracy")
        return metrics["accuracy"]

    found = []
    for first in range(0, len(rows), BATCH_SIZE):
        own = rows[first : first + BATCH_SIZE]
        padded = np.resize(own, BATCH_SIZE)
        batch = {name: np.asarray(column[padded]) for name, column in columns.items()}
        mask = (np.arange(BATCH_SIZE) < len(own)).astype(np.float32)
        found.append(np.asarray(of_batch(variables, batch | {"mask": mask}))[: len(own)])
    return np.concatenate(found).astype(np.float64) if found else np.zeros(0)
