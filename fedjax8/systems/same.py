"""Every device and every link is the same.

seconds of client i = latency + bytes down / B_down + step_seconds steps_i + latency + bytes up / B_up
"""

from collections.abc import Callable

import numpy as np

from fedjax8.given import checked
from fedjax8.systems._checks import check_above, check_from_zero, seconds_of_step
from fedjax8.systems.base import Speeds, SystemModel


@checked
def same(
    step_seconds: float | None = None,
    *,
    flops: float | None = None,
    down_bandwidth: float = 1e6,
    up_bandwidth: float = 2.5e5,
    latency: float = 0.0,
    operations: Callable[[], float] | None = None,
) -> SystemModel:
    """The system model of equal clients.

    Args:
      step_seconds: of a local step; 0.1 unless `flops` is given.
      flops: floating-point operations a second of a device, in its place: a step then takes the operations of the
        model's products, forward and backward, over them.
      down_bandwidth, up_bandwidth: bytes a second of a client.
      latency: seconds of a message beside its bytes, either way.
      operations: supplied by the program: gives the operations of a local step.
    """
    check_above(down_bandwidth=down_bandwidth, up_bandwidth=up_bandwidth)
    check_from_zero(latency=latency)
    seconds = seconds_of_step(step_seconds, flops, operations)

    def speeds(seed: int, round_number: int, ids: np.ndarray) -> Speeds:
        everyone = np.ones(len(ids))
        return Speeds(seconds * everyone, down_bandwidth * everyone, up_bandwidth * everyone, latency * everyone)

    return SystemModel(speeds)


EXAMPLES = ({}, {"step_seconds": 0.5, "latency": 0.05})
