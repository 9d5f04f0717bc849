"""Messages of a round and shapes of its outcome, found by tracing it without running it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.engine.call import RoundOutcome
from fedjax8.exchange.clock import Clock, Elapsed, Timeless, Timing
from fedjax8.exchange.discovery import Discovery, Recorder
from fedjax8.exchange.left_out import no_cells
from fedjax8.exchange.link import RoundLink
from fedjax8.executors.loop import loop
from fedjax8.keys import random_key
from fedjax8.numerics import formats
from fedjax8.systems import Speeds
from fedjax8.types import Algorithm, Codec, Cohort, Pool, PyTree


class Traced(NamedTuple):
    """Messages and outcome of a traced round."""

    found: list[Discovery]
    outcome: RoundOutcome
    """Shapes of a round's outcome."""


def trace_round(
    algorithm: Algorithm,
    uplink: Codec,
    downlink: Codec,
    num_clients: int,
    *,
    columns: Mapping[str, np.ndarray],
    server: PyTree,
    client: PyTree,
    frozen: PyTree,
    mixed_formats: bool,
    timing: Timing | None,
    moves: bool,
) -> Traced:
    """Messages and outcome of a round of one client, traced.

    Args:
      num_clients: registered clients.
      columns: of all rows; their shapes are used.
      server, client, frozen: initial states of the server and of one client, and frozen parameters.
      mixed_formats: whether several 8-bit formats are allowed.
      timing: of a run with a clock.
      moves: whether the change of the model is measured.

    Raises:
      UserError: for several formats that were not asked for.
    """
    recorder = Recorder()
    one: Any = {name: np.zeros((1, *c.shape[1:]), c.dtype) for name, c in columns.items()}
    states = jax.tree.map(lambda x: jnp.asarray(x)[None], {"algorithm": client, "uplink": {}})
    numbers: Any = np.zeros(1, np.int32)
    cohort = Cohort(numbers, numbers, numbers, numbers == 0, states)

    def one_round(server, cohort, pool, key):
        settings: Any = {"uplink": uplink, "downlink": downlink, "executor": loop(), "num_clients": num_clients}
        speeds = Speeds(*[np.ones(1, np.float32)] * len(Speeds._fields))
        clock = Clock.begin(speeds, timing, loop(), {}) if timing else Timeless()
        link = RoundLink(pool, {}, {}, {}, no_cells(), jnp.int32(0), recorder=recorder, clock=clock, **settings)
        return algorithm.round(link, server, cohort, key).report

    with formats.one_format(mixed_formats):
        report = jax.eval_shape(one_round, server, cohort, Pool(one, None, frozen, jnp.int32(0)), random_key(0))
    counts: Any = {d.channel: jax.ShapeDtypeStruct((), jnp.int32) for d in recorder.found}
    rejected: Any = jax.ShapeDtypeStruct((), bool)
    measured = {name: ratio for d in recorder.found for name, ratio in d.measured.items()}
    number: Any = jax.ShapeDtypeStruct((), jnp.float32)
    elapsed = Elapsed(number, number, number, counts) if timing else ()
    rest = jax.eval_shape(no_cells), rejected, elapsed, number if moves else ()
    return Traced(recorder.found, RoundOutcome(report, measured, counts, *rest))
