"""Compiled programs of a run and its rows on the devices, which no seed changes."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from fedjax8.engine.call import RoundOutcome, call_program
from fedjax8.engine.client_evaluation import ClientEvaluation
from fedjax8.engine.evaluation import Evaluated
from fedjax8.engine.fit import Fit
from fedjax8.engine.losses import losses_program
from fedjax8.exchange.clock import Timing
from fedjax8.types import Algorithm, Batch, Codec, Executor, Key, Program, PyTree, Variables


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """Programs and placed rows, made once for all simulations `beside` each other."""

    algorithm: Algorithm
    uplink: Codec
    downlink: Codec
    executor: Executor
    num_clients: int
    columns: Mapping[str, np.ndarray]
    """All rows, on the host."""
    fit: Fit
    outcome: Callable[[], RoundOutcome]
    """Shapes of a round's outcome."""
    usual: int | None
    """As in `call.call_program`."""
    timing: Timing | None
    """Of a run with a clock."""

    @functools.cached_property
    def placed(self) -> PyTree:
        """All rows, on the devices."""
        return self.executor.place({name: np.asarray(column) for name, column in self.columns.items()})

    @functools.cached_property
    def init_model(self) -> Callable[[Key, Batch], Variables]:
        """`Model.init`, compiled."""
        return jax.jit(self.algorithm.local.model.init)

    def call(self) -> Program:
        """The program of a call, not compiled."""
        kept = self.algorithm, self.uplink, self.downlink, self.executor, self.num_clients
        return call_program(*kept, self.outcome(), self.usual, self.timing)

    @functools.cached_property
    def compiled(self) -> Program:
        """The program of a call."""
        return self.executor.compile(self.call())

    @functools.cached_property
    def losses(self) -> Program:
        """The losses of clients, for participations that read them."""
        return self.executor.compile(losses_program(self.algorithm.local, self.executor))

    @functools.cached_property
    def client_evaluation(self) -> ClientEvaluation:
        """Evaluation of clients' own models."""
        return ClientEvaluation(self.algorithm, self.executor, self.fit, self.num_clients)

    @functools.cached_property
    def evaluated(self) -> Evaluated:
        """Evaluation of the global model."""
        return Evaluated(self.algorithm.local.model, self.executor, self.fit)
