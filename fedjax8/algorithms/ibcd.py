"""Incremental block-coordinate descent: one token walks from client to client, and one client works at a time.

    token z arrives at client i:    x_i+ ~ argmin f_i(x) + tau/2 ||x - z||^2       by its local steps from x_i
                                    z <- z + (x_i+ - x_i) / N                      and on to a neighbor

z stays the mean of all x_i. I-BCD (arXiv 2202.03263), in a form of ours: see `api_bcd`, of which it is the one with one
token. A round is one move of the token: use `participation=walk` with `cohort_size=1`.

Traffic: a model a round, from client to client.
"""

from fedjax8.algorithms.api_bcd import api_bcd
from fedjax8.given import checked
from fedjax8.types import Algorithm, LocalTraining


@checked
def ibcd(local: LocalTraining, tau: float = 1.0) -> Algorithm:
    """One walking token.

    Args:
      local: the clients' local training, whose steps approach the minimizer.
      tau: the strength of the token's pull, above 0.

    Raises:
      UserError: when a run is set up, if the participation has not one token.
    """
    return api_bcd(local, tau)


EXAMPLES = ({},)
