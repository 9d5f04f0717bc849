"""Evaluation of a run's global model on its validation rows, beside that on test rows."""

from collections.abc import Callable, Mapping

import numpy as np

from fedjax8.engine.evaluation import evaluation
from fedjax8.engine.simulation import Simulation
from fedjax8.engine.state import SimulationState
from fedjax8.types import Variables

VALIDATION = "validation"


def validator(
    simulation: Simulation, columns: Mapping[str, np.ndarray] | None
) -> Callable[[SimulationState], dict[str, float]]:
    """`validate(state) -> metrics` on these rows: `validation_loss`, `validation_accuracy`, those of every view;
    nothing without rows. Compiled, and the rows placed on the devices, when it is first called."""
    if columns is None:
        return lambda state: {}
    made: list[Callable[[Variables], dict[str, float]]] = []

    def validate(state: SimulationState) -> dict[str, float]:
        if not made:
            made.append(evaluation(simulation.model, columns, simulation.executor, part=VALIDATION))
        return made[0](simulation.variables(state))

    return validate
