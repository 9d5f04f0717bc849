"""What a link says of its round: the numbers of its clients, and their time by its clock."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp

from fedjax8.types import Array, Cohort, Executor, PyTree


class RoundFacts:
    """The methods of `types.Link` on numbers and time, for a dataclass with these fields."""

    clock: Any
    executor: Executor
    usual: int | None

    @property
    def varies(self) -> bool:
        """Whether rounds differ in their numbers of clients, or wait for some of the cohort only."""
        return self.usual is not None

    def expected(self, cohort: Cohort) -> Array:
        """float32: number of clients whose messages a round has in expectation, before dropouts."""
        return jnp.float32(self.usual) if self.usual is not None else self.count(cohort.valid).astype(jnp.float32)

    def count(self, mask: Array) -> Array:
        """int32: number of clients of the whole cohort for whom the mask bool `[C]` is true."""
        total: Array = self.executor.total(jnp.sum(mask, dtype=jnp.int32))
        return total

    def everyone(self, values: PyTree) -> PyTree:
        """Leaves `[C, ...]` of this shard's clients to those of the whole cohort, in the order of `collect`."""
        gathered: PyTree = self.executor.gather(values)
        return gathered

    def average(self, values: PyTree, mask: Array) -> PyTree:
        """float32 means of leaves `[C, ...]` over the clients of the whole cohort for whom bool `[C]` is true; zeros if
        there is none."""

        def total(x: Array) -> Array:
            kept = jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
            return jnp.sum(kept, axis=0, dtype=jnp.float32)

        sums = jax.tree.map(total, values)
        count = jnp.maximum(self.count(mask), 1)
        return jax.tree.map(lambda x: x / count, self.executor.total(sums))

    def until(self, deadline: float) -> Self:
        """The link of a round in which clients are late `deadline` seconds after its start; see `clock`."""
        return self._at(self.clock.until(deadline))

    def wait(self, cohort: Cohort) -> Self:
        """The link after these clients have their messages of the background."""
        return self._at(self.clock.wait(cohort))

    def late(self, cohort: Cohort) -> Array:
        """bool `[C]`: stragglers of the round so far."""
        late: Array = self.clock.is_late(cohort)
        return late

    def seconds(self, cohort: Cohort) -> Array:
        """float32 `[C]`: seconds since the start of the round; 0 without a clock."""
        seconds: Array = self.clock.seconds(cohort)
        return seconds

    def seconds_left(self, cohort: Cohort) -> Array:
        """float32 `[C]`: seconds to the deadline."""
        seconds: Array = self.clock.seconds_left(cohort)
        return seconds

    def step_seconds(self, cohort: Cohort) -> Array:
        """float32 `[C]`: seconds of a local step; 0 without a clock."""
        seconds: Array = self.clock.step_seconds(cohort)
        return seconds

    def _at(self, clock: Any) -> Self:
        link: Any = self
        changed: Self = dataclasses.replace(link, clock=clock)
        return changed
