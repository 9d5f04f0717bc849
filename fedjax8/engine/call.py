"""Several rounds as one program, without the host between them.

    for i in 0 .. rounds - 1:   state, states of the cohort <- Algorithm.round(link, state, cohort i, key of the round)

How many rounds a call has is an argument of the program. The same program therefore runs one round or many, and gives
the same bits either way.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8 import trees
from fedjax8.engine.feeding import Rows
from fedjax8.engine.planning import Plan
from fedjax8.exchange import versions
from fedjax8.exchange.clock import Clock, Elapsed, Timeless, Timing
from fedjax8.exchange.link import RoundLink
from fedjax8.types import Algorithm, Array, Channel, Codec, Cohort, Executor, Key, Pool, Program, PyTree, Ratio


class Carried(NamedTuple):
    """State between two rounds of a call."""

    server: PyTree
    down_states: dict[str, PyTree]


class CallInputs(NamedTuple):
    """Arguments of a call of several rounds, the same on every device."""

    order: PyTree
    """As in `Pool`."""
    root: Key
    """Key of the run: every draw in a round comes from it, the round and the client."""
    first: Array | np.integer
    """int32: rounds done before."""
    rounds: Array | np.integer
    """int32: rounds to do."""
    frozen: PyTree
    """Frozen parameters as initialized, placed on the devices."""
    step_scale: np.floating | None = None
    """float32: as in `Pool`; None for 1, which is then no argument of the program."""


class Share(NamedTuple):
    """One shard's part of a call, under a leading axis of length 1."""

    ids: Array | np.ndarray
    """int32 `[R, c]`."""
    slots: Array | np.ndarray
    """int32 `[R, c]`: place of a client's state in `states`."""
    rows: Rows
    """Leaves `[R, c]`, and the shard's own columns where they are streamed."""
    states: PyTree
    """Leaves `[T, ...]`: states of the clients of the call."""
    lost: PyTree = ()
    """bool `[R, c]`: clients that receive the model and are not waited for; `()` where there are none."""
    speeds: PyTree = ()
    """`systems.Speeds`, float32 `[R, c]`; `()` without a clock."""
    ages: PyTree = ()
    """int32 `[R, c]`: as in `Cohort`; `()` where all clients start from the present model."""
    factors: PyTree = ()
    """float32 `[R, c]`: likewise."""
    started: PyTree = ()
    """int32 `[R]`: clients that receive the model of a round, likewise."""
    tokens: PyTree = ()
    """int32 `[R, c]`: as in `Cohort`."""


def share_of(plan: Plan, own: Sequence[int], rows: Rows, states: PyTree, loses: bool) -> Share:
    """The part of a call of the shards `own`; `loses` where some of the clients asked are not waited for."""
    laid = plan.ids, plan.slots, plan.training, plan.speeds, plan.ages, plan.factors, plan.tokens
    ids, slots, training, speeds, ages, factors, tokens = jax.tree.map(lambda x: x[list(own)], laid)
    lost = ids != training if loses else ()
    started = np.tile(plan.started, (len(own), 1)) if isinstance(plan.started, np.ndarray) else ()
    return Share(ids, slots, rows, states, lost, speeds, ages, factors, started, tokens)


def _apart(down_states: dict[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """(states of codecs, the ring of models that were sent, if there is one). A round that is taken back has sent its
    model all the same, so that the ring is neither checked nor taken back."""
    ring = {name: tree for name, tree in down_states.items() if name == versions.RING}
    return {name: tree for name, tree in down_states.items() if name not in ring}, ring


class Begun(NamedTuple):
    """A call, ready to be dispatched."""

    plan: Plan
    carried: Carried
    settings: CallInputs
    share: Share


class RoundOutcome(NamedTuple):
    """Values of a round for the log, or of all rounds of a call, under a leading axis `[R]`."""

    report: dict[str, Any]
    """The algorithm's report."""
    measured: dict[str, Ratio]
    """The codecs' measures."""
    sent: dict[Channel, Array]
    """Messages of each kind."""
    left_out: Array
    """Cells of the excluded clients: see `left_out.py`."""
    rejected: Array
    """bool: whether the server's new state was unusable, and the round taken back."""
    elapsed: Elapsed | tuple[()] = ()
    """Time of the round; `()` without a clock."""
    squared_update: Array | tuple[()] = ()
    """float32: squared norm of the change of the model; `()` where no participation remembers it."""


def call_program(
    algorithm: Algorithm,
    uplink: Codec,
    downlink: Codec,
    executor: Executor,
    num_clients: int,
    outcome: RoundOutcome,
    usual: int | None = None,
    timing: Timing | None = None,
) -> Program:
    """`(columns, carried, settings), share -> (carried, outcomes [R]), states`, for `executor.compile`.

    `outcome` holds the shapes of one round's outcome; `usual` is `cohort_size` where numbers of clients vary; `timing`
    is that of a run with a clock.
    """

    def program(shared, share):
        columns, start, settings = shared
        share = jax.tree.map(lambda x: x[0], share)
        columns = columns or share.rows.columns
        zeros = trees.zeros_like(outcome)

        def one_round(index, loop):
            carried, states, outcomes = loop
            number = settings.first + index
            ids, slots = share.ids[index], share.slots[index]
            rows = share.rows.starts[index], share.rows.sizes[index]
            own = jax.tree.map(lambda x: x.at[slots].get(mode="clip"), states)
            here = lambda tree: jax.tree.map(lambda x: x[index], tree)
            marks = here(share.ages), here(share.factors), here(share.tokens)
            cohort = Cohort(ids, *rows, ids < num_clients, own, here(share.lost), *marks)
            scale = 1.0 if settings.step_scale is None else settings.step_scale
            frozen = algorithm.frozen(carried.server, settings.frozen)
            pool = Pool(columns, settings.order, frozen, number, scale)
            clock = Clock.begin(here(share.speeds), timing, executor, zeros.sent) if timing else Timeless()
            link = RoundLink(
                pool,
                carried.down_states,
                zeros.sent,
                zeros.measured,
                zeros.left_out,
                number,
                uplink=uplink,
                downlink=downlink,
                executor=executor,
                num_clients=num_clients,
                usual=usual,
                clock=clock,
                started=here(share.started),
            )
            key = jax.random.fold_in(jax.random.fold_in(settings.root, 1), number)
            out = algorithm.round(link, carried.server, cohort, key)
            link = cast(RoundLink, out.link)
            down_states, ring = _apart(link.down_states)
            after, carried = Carried(out.state, down_states), Carried(carried.server, _apart(carried.down_states)[0])
            after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, carried)
            # Every device decides by the same numbers.
            usable = trees.still_finite(after, carried) & trees.within_bounds(algorithm.variables(after.server))
            places = jnp.where(usable, slots, most_slots)
            states = jax.tree.map(lambda x, new: x.at[places].set(new, mode="drop"), states, out.client_states)
            elapsed = link.clock.elapsed_in(cohort)
            left = RoundOutcome(out.report, link.measured, link.sent, link.left_out, ~usable, elapsed)
            if not isinstance(outcome.squared_update, tuple):
                moved = (algorithm.variables(of.server).params for of in (after, carried))
                left = left._replace(squared_update=jnp.square(trees.norm(trees.subtract(*moved))))
            outcomes = jax.tree.map(lambda all_of, new: all_of.at[index].set(new), outcomes, left)
            after = trees.select(usable, after, carried)
            return after._replace(down_states=after.down_states | ring), states, outcomes

        most, most_slots = len(share.ids), np.iinfo(np.int32).max
        outcomes = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), outcome)
        carried, states, outcomes = jax.lax.fori_loop(0, settings.rounds, one_round, (start, share.states, outcomes))
        return (carried, outcomes), jax.tree.map(lambda x: x[None], states)

    return program
