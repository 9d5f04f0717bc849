"""Facts about a simulation, as it is shown in a line or a notebook. Nothing is compiled for them."""

from typing import TYPE_CHECKING, Any

from fedjax8.algorithms.parts import UsualRound
from fedjax8.display import name_of

if TYPE_CHECKING:
    from fedjax8.engine.simulation import Simulation


def facts_of(simulation: "Simulation") -> dict[str, Any]:
    """Clients, their plan, codecs, devices."""
    plan, data, executor = simulation.plan, simulation.data, simulation.executor
    usual = getattr(simulation.algorithm.round, "__self__", None)
    parts = (usual.client, usual.server) if isinstance(usual, UsualRound) else (simulation.algorithm.round,)
    length = f"{plan.epochs} epochs" if plan.epochs else f"{plan.steps} steps"
    return {
        "round": ", ".join(name_of(part) for part in parts),
        "clients": data.num_clients,
        "cohort": simulation.cohort_size,
        "participation": name_of(simulation.participation.draw),
        **({"clock": name_of(simulation.system.speeds)} if simulation.system.speeds else {}),
        "local_training": f"{length} of batches of {plan.batch_size}",
        "uplink": name_of(simulation.uplink.encode),
        "downlink": name_of(simulation.downlink.encode),
        "devices": executor.num_shards,
        "clients_at_once": simulation.chunk * executor.num_shards,
        "seed": simulation.seed,
    }
