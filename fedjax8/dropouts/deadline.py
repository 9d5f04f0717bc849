"""Stragglers: clients whose message arrives after the deadline drop out.

    seconds of client i = latency_i + bytes down / B_down + step_seconds_i steps_i + latency_i + bytes up / B_up

Speeds are those of the system model (`systems`). Bytes are those that this client receives and sends in this round: of
messages that are alternatives its own, without the parts that it leaves out, and of several messages all. Each exchange
of the round adds its own and decides who is late; see `exchange.clock`. A round with a straggler lasts until the
deadline.
"""

import math

from fedjax8.dropouts.base import Dropout


def deadline(seconds: float) -> Dropout:
    """The dropout of stragglers, `seconds` after the start of a round."""
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be a number above 0; got {seconds}")
    return Dropout(deadline=seconds)


EXAMPLES = ({"seconds": 10.0}, {"seconds": 1.0})
