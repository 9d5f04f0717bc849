"""Streaming DiLoCo: `diloco` with its settings for parts that synchronize in turn while training goes on.

Douillard et al. 2025, arXiv 2501.18512; see `diloco`. Equal mixing and four parts are defaults of this project, chosen
from what others report of the paper.
"""

from fedjax8.algorithms.diloco import diloco
from fedjax8.given import checked
from fedjax8.types import Aggregator, Algorithm, LocalTraining


@checked
def streaming_diloco(
    local: LocalTraining,
    parts: int = 4,
    *,
    delay: int = 1,
    mixing: float = 0.5,
    server_learning_rate: float = 0.7,
    momentum: float = 0.9,
    weighting: str = "uniform",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """`diloco` with other defaults; the arguments are its own."""
    return diloco(
        local,
        server_learning_rate,
        momentum=momentum,
        parts=parts,
        delay=delay,
        mixing=mixing,
        weighting=weighting,
        model_state=model_state,
        aggregate=aggregate,
    )


EXAMPLES = ({"parts": 2},)
