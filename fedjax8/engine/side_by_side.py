"""Several runs that differ in their seed alone, as one dispatch.

Whole runs are spread over devices, as the clients of one run otherwise are: `Executor.map_reduce` over runs, each of
which trains its own clients on one device. Devices then exchange nothing until the call is over. On CPU a
device takes its runs one after another; on accelerators they are vmapped. Every run has its own frozen parameters.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.engine.call import Begun
from fedjax8.engine.simulation import Simulation
from fedjax8.engine.state import SimulationState
from fedjax8.errors import UserError
from fedjax8.executors import padded
from fedjax8.executors.auto import auto
from fedjax8.types import Executor, Partial, Program, PyTree

RunLines = list[dict[str, Any]]


class RunRounds(Protocol):
    """The rounds of several runs as one dispatch."""

    def __call__(
        self,
        states: Sequence[SimulationState],
        counts: Sequence[int],
        thens: Sequence[int] | None = None,
        donate: bool = False,
    ) -> tuple[list[SimulationState], list[RunLines]]:
        """(next states, lines of metrics of each run); arguments by run, as of `Simulation.run_rounds`."""


def side_by_side(simulations: Sequence[Simulation], spread: Executor | None = None) -> RunRounds:
    """The `RunRounds` of several runs.

    Each run gets the results of its own `run_rounds`, with its `count`; a run with count 0 waits. All runs of a call do
    the same number of rounds, which may be fewer than asked for.

    Args:
      simulations: made `beside` the first of them, on executors with one shard (`executors.chunked`).
      spread: the executor that maps runs over devices; default `executors.auto`.

    Example, with `settings` of a run on `chunked()`:
      first = simulate(algorithm, data, seed=0, **settings)
      runs = [first, *(simulate(algorithm, data, seed=s, beside=first, **settings) for s in (1, 2, 3))]
      states, metrics = side_by_side(runs)([run.init() for run in runs], [10] * 4)
    """
    spread = auto() if spread is None else spread
    programs = simulations[0].programs
    if any(simulation.programs is not programs for simulation in simulations):
        raise UserError("runs side by side share no programs; make them with simulate(..., beside=the first of them)")
    width = spread.num_shards * padded(-(-len(simulations) // spread.num_shards), spread.chunk)
    placed: list[PyTree] = []
    frozen: list[PyTree] = []
    compiled: list[Program] = []

    def program() -> Program:
        call = programs.call()

        def one_run(columns, run):
            (carried, settings, share), frozen = run
            (carried, outcomes), states = call((columns, carried, settings._replace(frozen=frozen)), share)
            return Partial(()), (carried, outcomes, states)

        return spread.compile(lambda columns, runs: spread.map_reduce(one_run, columns, runs))

    def begin(states: Sequence[SimulationState], counts: Sequence[int]) -> list[Begun]:
        """Calls of like length; one that has to wait is begun all the same, for its shapes."""
        begun = [s.begin(state, max(count, 1)) for s, state, count in zip(simulations, states, counts, strict=True)]
        rounds = min(b.plan.rounds for b, count in zip(begun, counts, strict=True) if count)
        longer = [bool(count) and b.plan.rounds > rounds for b, count in zip(begun, counts, strict=True)]
        return [
            s.begin(state, rounds) if again else b
            for s, state, b, again in zip(simulations, states, begun, longer, strict=True)
        ]

    def run_rounds(
        states: Sequence[SimulationState],
        counts: Sequence[int],
        thens: Sequence[int] | None = None,
        donate: bool = False,
    ) -> tuple[list[SimulationState], list[RunLines]]:
        if not any(counts):
            return list(states), [[] for _ in states]
        begun = begin(states, counts)
        settings = [b.settings._replace(frozen={}) for b in begun]
        runs = [
            (b.carried, own if count else own._replace(rounds=np.int32(0)), b.share)
            for b, own, count in zip(begun, settings, counts, strict=True)
        ]
        idle = (runs[0][0], runs[0][1]._replace(rounds=np.int32(0)), runs[0][2])
        if not compiled:
            compiled.append(program())
            placed.append(spread.place(simulations[0].columns))
            of_runs = [b.settings.frozen for b in begun]  # stacked once: no call changes them
            frozen.append(_stacked(of_runs + of_runs[:1] * (width - len(runs))))
        _, kept = compiled[0](placed[0], (_stacked(runs + [idle] * (width - len(runs))), frozen[0]))
        for simulation, b, then in zip(simulations, begun, thens or [0] * len(begun), strict=True):
            if then:
                simulation.prefetch(b.plan.first + b.plan.rounds, then)
        after, lines = [], []
        for i, (simulation, state, b, count) in enumerate(zip(simulations, states, begun, counts, strict=True)):
            out = jax.tree.map(lambda x, i=i: x[i], kept)
            new, own_lines = simulation.finish(state, b.plan, out[0], out[1], out[2], donate) if count else (state, [])
            after.append(new)
            lines.append(own_lines)
        return after, lines

    return run_rounds


def _stacked(runs: Sequence[PyTree]) -> PyTree:
    """Leaves `[runs, ...]`. Arrays of different length, such as row orders, are made equally long by zeros behind.

    By way of the host: the runs' states lie on different devices.
    """

    def stack(*leaves):
        if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
            return jnp.stack(leaves)
        arrays = [np.asarray(x) for x in leaves]
        shape = tuple(np.max([x.shape for x in arrays], axis=0)) if arrays[0].ndim else ()
        whole = np.zeros((len(arrays), *shape), arrays[0].dtype)
        for i, array in enumerate(arrays):
            inside: Any = map(slice, array.shape)
            whole[(i, *inside)] = array
        return whole

    return jax.tree.map(stack, *runs)
