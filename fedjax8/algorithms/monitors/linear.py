"""LinearFDA (Theologitis et al. 2024, arXiv 2405.20988): the mean drift's length along one direction.

    S_k = (||u_k||^2, <xi, u_k>),      H = v - (mean <xi, u_k>)^2,      ||xi|| = 1

By Cauchy-Schwarz <xi, mean u>^2 <= ||mean u||^2, so H >= Var always. xi is where the common model last moved,
(w_0 - w_00) / ||w_0 - w_00||, which every worker knows; before that it is a fixed random direction (the authors' code),
which sees next to nothing of the drift. Message: two float32, 8 bytes.
"""

from fedjax8.algorithms.monitors._direction import inner, norm2
from fedjax8.algorithms.monitors.base import Monitor


def linear() -> Monitor:
    """The monitor that sends a length and a product."""

    def sends(drift, direction, threshold):
        return {"norm2": norm2(drift), "product": inner(direction, drift)}

    def estimate(reduced, step):
        return reduced.mean["norm2"] - reduced.mean["product"] ** 2

    return Monitor(estimate, sends, directed=True)


EXAMPLES = ({},)
