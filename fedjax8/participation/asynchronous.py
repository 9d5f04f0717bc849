"""Asynchronous rounds: every arrival is a server step. FedAsync (Xie et al. 2019, arXiv 1903.03934, algorithm 1).

    x <- (1 - alpha s(age)) x + alpha s(age) y_i

y_i is the model of the client that arrives, alpha the server's learning rate: `fedavg(server_learning_rate=alpha,
payload="params")`. The paper's proximal term is `config.client.proximal`. This is `buffered` with a buffer of one.
"""

import functools

from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.participation.base import Numbers, Participation
from fedjax8.participation.buffered import buffered


@checked
def asynchronous(
    concurrency: int = 100,
    *,
    staleness: str = "polynomial",
    exponent: float = 0.5,
    threshold: float = 10.0,
    versions: int = 200,
) -> Participation:
    """The participation of one client at a time, as it arrives; arguments as of `buffered`. `cohort_size` must be 1."""
    made = buffered(concurrency, staleness=staleness, exponent=exponent, threshold=threshold, versions=versions)
    return made._replace(numbers=functools.partial(_numbers, made))


def _numbers(made: Participation, num_clients: int, cohort_size: int) -> Numbers:
    if cohort_size != 1:
        raise UserError(
            f"config.cohort_size is {cohort_size}, but here each arrival is a server step: set it to 1, or use "
            "--config.participation.name=buffered"
        )
    return made.numbers(num_clients, cohort_size)


EXAMPLES = ({"concurrency": 4, "versions": 8}, {"concurrency": 2, "staleness": "constant"})
