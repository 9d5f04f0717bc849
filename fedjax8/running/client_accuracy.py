"""Personalized accuracy of a run: clients' own models on their own held-out rows, in the log and `clients.json`.

    personal_accuracy     mean over clients          personal_worst_tenth   mean of the lowest tenth of clients
    personal_deviation    standard deviation         personal_fairness      Jain's index (`results.fairness`)
    personal_loss         mean over clients          personal_clients       clients with held-out rows

Clients are evenly spaced by number where they are many, the same ones at every evaluation.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.held_out import HeldOut, held_out
from fedjax8.engine.client_evaluation import ClientScores, check_fine_tuning
from fedjax8.engine.simulation import Simulation
from fedjax8.engine.state import SimulationState
from fedjax8.errors import UserError
from fedjax8.hosts import hosts
from fedjax8.results.fairness import spread
from fedjax8.results.runs import CLIENTS
from fedjax8.running.about import evenly
from fedjax8.running.workdir import write_json


class OwnModels:
    """Evaluations of the clients' own models of one run."""

    def __init__(
        self,
        simulation: Simulation,
        dataset: Dataset,
        most: int,
        fine_tune_steps: int = 0,
        split_seed: int | None = None,
        metric: str = "accuracy",
        higher: bool = True,
    ):
        """Up to `most` clients are evaluated, each after so many local steps on its training rows.

        Test rows are dealt by `split_seed`; by the run's seed where None.
        """
        self._simulation, self._dataset = simulation, dataset
        self._split_seed = simulation.seed if split_seed is None else split_seed
        self._most, self._steps = most, fine_tune_steps
        self._metric, self._higher = metric, higher
        self._last: tuple[int, ClientScores] | None = None

    @functools.cached_property
    def held(self) -> HeldOut:
        """Held-out rows by client."""
        return held_out(self._dataset, self._simulation.data, self._split_seed)

    @property
    def ids(self) -> np.ndarray:
        """The clients that are evaluated."""
        return evenly(self._simulation.num_clients, self._most)

    def scores(self, state: SimulationState) -> ClientScores:
        """Scores after the rounds of `state`, worked out once for each round; UserError where the model has no such
        metric."""
        if self._last is None or self._last[0] != state.round:
            found = self._simulation.evaluate_clients(state, self.ids, self.held.clients, self._steps)
            if self._metric not in found.metrics:
                raise UserError(
                    f"clients' own models cannot be compared: the model has no metric called {self._metric}"
                )
            self._last = state.round, found
        return self._last[1]

    def line(self, state: SimulationState) -> dict[str, float]:
        """Their metrics for the log, `personal_...`."""
        found = self.scores(state)
        measures = spread(found.metrics[self._metric], self._metric, self._higher) | {
            "loss": float(found.metrics["loss"].mean()),
            "clients": len(found.ids),
        }
        if found.without_rows:
            measures["without_rows"] = found.without_rows
        return {f"personal_{name}": value for name, value in measures.items()}

    def document(self, state: SimulationState) -> dict[str, Any]:
        """The content of `clients.json`: `{"rows", "clients", "counts", "metric", "accuracy", ...}`.

        `rows` is `natural` or `dealt` (`data.held_out`), `counts` the number of held-out rows of each client, `metric`
        the name of the values by client, `without_rows` the number of clients left out since they have none, `names`
        the clients' ids in the data, if it has such.
        """
        found = self.scores(state)
        named = {"names": list(found.names)} if found.names else {}
        return {
            "rows": self.held.kind,
            "clients": found.ids.tolist(),
            **named,
            "counts": found.counts.tolist(),
            "metric": self._metric,
            self._metric: found.metrics[self._metric].tolist(),
            "without_rows": found.without_rows,
            "fine_tune_steps": self._steps,
        }

    def write(self, state: SimulationState, folder: Path) -> None:
        """Writes `clients.json`; every process must call it."""
        document = self.document(state)
        if hosts().first:
            write_json(folder / CLIENTS, document)


def own_models(
    simulation: Simulation,
    dataset: Dataset,
    settings: Mapping[str, int],
    most: int = 0,
    split_seed: int | None = None,
    metric: str = "accuracy",
    higher: bool = True,
) -> OwnModels | None:
    """The evaluations that a config's `evaluate_clients` asks for; None if it asks for none. `most`, a number of
    clients to evaluate at the end, overrides the number of the config. `metric` is the one that clients are compared
    by, better `higher` or not. Test rows are dealt by `split_seed`, or by the run's seed where None.

    UserError for a setting that changes nothing, for steps that no epsilon accounts for, and where no client has
    held-out rows.
    """
    if settings["every"] or most:
        check_fine_tuning(simulation.algorithm, settings["fine_tune_steps"])
        number = most or settings["clients"]
        made = OwnModels(simulation, dataset, number, settings["fine_tune_steps"], split_seed, metric, higher)
        if not made.held.clients.windows(made.ids)[1].any():
            raise UserError(f"none of the {len(made.ids)} clients that would be evaluated has held-out rows")
        return made
    if settings["fine_tune_steps"]:
        raise UserError(
            "config.evaluate_clients.fine_tune_steps changes nothing, since no client's model is evaluated; set "
            "--config.evaluate_clients.every=N or --client_accuracy=N too"
        )
    return None


def line_of(models: OwnModels | None) -> Callable[[SimulationState], Mapping[str, float]] | None:
    """`state -> personal metrics` for the log; None where clients' own models are not evaluated."""
    return None if models is None else models.line
