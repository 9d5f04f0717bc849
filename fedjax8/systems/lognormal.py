"""Devices whose speeds, and links whose rates, are log-normal.

    step_seconds_ir = step_seconds exp(spread u_i + jitter u_ir)
    B_i             = bandwidth exp(link_spread w_i)                    the same factor down and up

u_i, w_i are standard normal, drawn once for each client, and u_ir anew in every round, so that the median client takes
`step_seconds` for a step. Log-normal speeds are a common model (as in FedScale, Lai et al. 2022, arXiv 2105.11367,
whose traces of devices have such tails); the defaults are this project's.
"""

from collections.abc import Callable

import numpy as np

from fedjax8.given import checked
from fedjax8.systems._checks import check_above, check_from_zero, check_seed, check_spread, seconds_of_step
from fedjax8.systems._draws import normals, slowness
from fedjax8.systems.base import Speeds, SystemModel

_LINKS = 1
"""Address of the links' draws, apart from those of the devices."""


@checked
def lognormal(
    step_seconds: float | None = None,
    *,
    flops: float | None = None,
    spread: float = 0.5,
    jitter: float = 0.0,
    down_bandwidth: float = 1e6,
    up_bandwidth: float = 2.5e5,
    link_spread: float = 0.0,
    latency: float = 0.0,
    seed: int = 0,
    operations: Callable[[], float] | None = None,
) -> SystemModel:
    """The system model of log-normal devices.

    Args:
      step_seconds: of one local step on the median client; 0.1 unless `flops` is given.
      flops: floating-point operations a second of the median client, in its place; see `same`.
      spread, jitter: standard deviations of the logarithm of a client's slowness, for good and in one round.
      down_bandwidth, up_bandwidth: bytes a second of the median client.
      link_spread: standard deviation of the logarithm of a client's bandwidths.
      latency: seconds of a message beside its bytes, either way.
      seed: of the devices, apart from the run's seed: runs of several seeds have the same devices.
      operations: supplied by the program: gives the operations of a local step.
    """
    check_above(down_bandwidth=down_bandwidth, up_bandwidth=up_bandwidth)
    check_from_zero(latency=latency)
    check_spread(spread=spread, jitter=jitter, link_spread=link_spread)
    check_seed(seed)
    seconds = seconds_of_step(step_seconds, flops, operations)

    def speeds(run_seed: int, round_number: int, ids: np.ndarray) -> Speeds:
        device = slowness(seed, run_seed, round_number, ids, spread, jitter)
        links = np.exp(link_spread * normals(ids, seed, _LINKS)) if link_spread else np.ones(len(ids))
        return Speeds(seconds * device, down_bandwidth * links, up_bandwidth * links, np.full(len(ids), latency))

    return SystemModel(speeds)


EXAMPLES = ({}, {"jitter": 0.2, "link_spread": 0.5})
