"""DFedSalt: DFedAlt whose shared part takes sharpness-aware steps.

    e = rho g / ||g||,  g = grad_u F(u, v);      u <- u - eta grad_u F(u + e, v)

Shi et al. 2023, arXiv 2305.15157; see `dfedalt`, which it is with rho = 0. The authors' rho was not read; 0.05 to 0.7
is the field's range (Foret et al. 2021, arXiv 2010.01412, for SAM). A step of the shared part takes the time of two.
"""

from collections.abc import Sequence

from fedjax8.algorithms.dfedalt import alternating
from fedjax8.given import checked
from fedjax8.types import Algorithm, LocalTraining, Topology


@checked
def dfedsalt(
    local: LocalTraining,
    topology: Topology | None = None,
    *,
    rho: float = 0.05,
    private: Sequence[str] | str | None = None,
    order: str = "alternate",
    head_epochs: int = 1,
    model_state: str = "average",
) -> Algorithm:
    """A shared body over a graph, with sharpness-aware steps.

    Args:
      local: the workers' local training.
      topology: who hears whom, from `topologies`; a ring by default.
      rho: length of the step of ascent, from 0 up.
      private, order, head_epochs, model_state: as of `dfedalt`.

    Raises:
      UserError: as `dfedalt`; or if privacy is accounted, since a step takes two gradients.
    """
    if not 0 <= rho < float("inf"):
        raise ValueError(f"rho must be a number from 0 up, got {rho}")
    return alternating(local, topology, private, order, head_epochs, model_state, rho)


EXAMPLES = ({"private": "head"}, {"private": "*bias", "order": "simultaneous", "rho": 0.3, "model_state": "local"})
