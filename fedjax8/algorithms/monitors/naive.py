"""NaiveFDA: the mean squared drift, as if workers never moved together (in the authors' code, not in their paper's v1).

    S_k = ||u_k||^2,      H = v = mean ||u_k||^2 >= Var      always

Message: one float32, 4 bytes.
"""

from fedjax8.algorithms.monitors._direction import norm2
from fedjax8.algorithms.monitors.base import Monitor


def naive() -> Monitor:
    """The monitor that sends a length alone."""
    return Monitor(
        estimate=lambda reduced, step: reduced.mean["norm2"],
        sends=lambda drift, direction, threshold: {"norm2": norm2(drift)},
    )


EXAMPLES = ({},)
