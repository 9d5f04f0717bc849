"""Simulated seconds of a round's clients, measured at its exchanges, and the stragglers among them.

    received:   t_i <- max(t_i, T) + bytes / B_down            bytes of the message that client i receives
    trained:    t_i <- t_i + step_seconds_i * steps
    sent:       t_i <- t_i + bytes / B_up                      bytes that client i sends, without parts it leaves out
    late:       t_i > deadline;     T <- max of t_i over those who sent and are not late

t_i is the time of client i since the round began, T the time at which the server has every message that it waits for.
The server knows who will be late and waits for the others only. Several messages of a client add up, alternatives do
not: a client is charged for the messages that it receives and sends itself. A late client's message counts nowhere,
neither in the aggregate nor in the bytes sent, and from then on the server sends it nothing in that round.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import struct

from fedjax8.dropouts import Speeds
from fedjax8.types import Array, Cohort


class Sending(NamedTuple):
    """Start and speed of clients' uploads, float32 `[c]`."""

    ready: Array
    """Seconds since the round began."""
    bandwidth: Array
    """Bytes a second."""


@struct.dataclass
class Clock:
    """Elapsed seconds of this device's clients in one round."""

    speeds: Speeds
    elapsed: Array
    """float32 `[c]`: t_i."""
    late: Array
    """bool `[c]`: late in an exchange of this round."""
    server: Array
    """float32: T."""
    deadline: float = struct.field(pytree_node=False)
    steps: Callable[[Array], Array] = struct.field(pytree_node=False)
    """int32 sizes of clients to their local steps, as in `Dropout`."""

    @staticmethod
    def begin(speeds: Speeds, steps: Callable[[Array], Array], deadline: float) -> "Clock":
        """The clock at the beginning of a round."""
        zeros = jnp.zeros(speeds.step_seconds.shape, jnp.float32)
        return Clock(speeds, zeros, zeros > 0, jnp.float32(0), deadline, steps)

    def receivers(self, cohort: Cohort) -> Cohort:
        """The cohort without its stragglers so far."""
        return cohort._replace(valid=cohort.valid & ~self.late)

    def received(self, cohort: Cohort, num_bytes: Array) -> "Clock":
        """The clock after these clients have received a message of so many bytes."""
        ready = jnp.maximum(self.elapsed, self.server) + num_bytes / self.speeds.down_bandwidth
        return dataclasses.replace(self, elapsed=jnp.where(cohort.valid, ready, self.elapsed))

    def trained(self, cohort: Cohort, steps: Array | int | None) -> tuple[Cohort, "Sending"]:
        """(the cohort, its uploads) after `steps` local steps, None for the batch plan's.

        Clients that cannot be in time any more are not trained, which saves time.
        """
        taken = self.steps(cohort.size) if steps is None else jnp.where(cohort.size > 0, steps, 0)
        ready = self.elapsed + self.speeds.step_seconds * taken
        lost = self.late | (ready > self.deadline)
        sending = Sending(ready, self.speeds.up_bandwidth)
        dropped = lost if isinstance(cohort.dropped, tuple) else cohort.dropped | lost
        return cohort._replace(dropped=dropped, size=jnp.where(lost, 0, cohort.size)), sending

    def sent(self, cohort: Cohort, arrived: Array, last: Array) -> "Clock":
        """The clock after these clients' messages arrived at `arrived` `[c]`, the last one in time at `last` (-inf if
        none is)."""
        return dataclasses.replace(
            self,
            elapsed=jnp.where(cohort.reached, arrived, self.elapsed),
            late=self.late | (cohort.reached & (arrived > self.deadline)),
            server=jnp.maximum(self.server, last),
        )
