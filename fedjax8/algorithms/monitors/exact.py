"""The variance itself (Theologitis et al. 2024, arXiv 2405.20988): the reference for all other monitors.

    S_k = (||u_k||^2, u_k),      H = v - ||mean u_k||^2 = Var,      v = mean ||u_k||^2

Sends a whole model and a number at every check, 4 P + 4 bytes, so it saves no traffic. The difference of two nearly
equal numbers loses its digits in float32; the simulator, which has all models, puts the centered form
mean ||u_k - mean u||^2 in its place (`Monitor.exact`).
"""

from fedjax8.algorithms.monitors._direction import norm2
from fedjax8.algorithms.monitors.base import Monitor


def exact() -> Monitor:
    """The monitor whose H is the variance."""

    def sends(drift, direction, threshold):
        return {"norm2": norm2(drift), "drift": drift}

    def estimate(reduced, step):
        return reduced.mean["norm2"] - norm2(reduced.mean["drift"])

    return Monitor(estimate, sends, exact=True)


EXAMPLES = ({},)
