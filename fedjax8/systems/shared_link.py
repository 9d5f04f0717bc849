"""The clients of another system model, with a server whose own link they share.

    sum over the transfers of one direction of rate_i <= bandwidth of the server, at each moment max-min fair

Down and up are shared apart from each other; see `exchange.transfers` for the rates. Devices, the clients' own links
and their availability are those of the inner model.
"""

from fedjax8.given import checked
from fedjax8.systems._checks import check_above
from fedjax8.systems.base import ServerLink, SystemModel


@checked
def shared_link(inner: SystemModel, down_bandwidth: float = 1.25e8, up_bandwidth: float = 1.25e8) -> SystemModel:
    """The system model `inner` behind a shared link of the server.

    Args:
      inner: the clients, of a model with a clock. If its server has a link too, the narrower one counts.
      down_bandwidth: bytes a second from the server to all clients together; by default 1 Gbit/s.
      up_bandwidth: bytes a second from all clients together.

    Raises:
      ValueError: a bandwidth that is not a number above 0, or an inner model without a clock.
    """
    check_above(down_bandwidth=down_bandwidth, up_bandwidth=up_bandwidth)
    if not inner.timed:
        raise ValueError("inner has no clock, so that there are no transfers to share a link; try inner.name=same")
    narrower = map(min, inner.server, ServerLink(down_bandwidth, up_bandwidth))
    return inner._replace(server=ServerLink(*narrower))


def _examples() -> tuple[dict, ...]:
    from fedjax8.systems.lognormal import lognormal
    from fedjax8.systems.same import same

    return (
        {"inner": same(), "down_bandwidth": 1e7, "up_bandwidth": 5e6},
        {"inner": lognormal(jitter=0.2, link_spread=0.5)},
    )


EXAMPLES = _examples()
