"""Shared vocabulary: what a model, a codec, an algorithm and an executor are.

Axis letters, used in every docstring: `C` clients in the cohort, `S` local steps, `B` examples per batch, `P`
parameters, `K` registered clients, `N` rows of data. An *update* is new minus old. Bytes are octets.

Everything here is a `NamedTuple` of pure functions, built by a factory that closes over its settings. To add one,
write a function that returns the tuple; nothing has to be registered.
"""

from fedjax8.types.messages import MODEL, Channel, Codec, Sections, check_codec
from fedjax8.types.models import Array, Batch, Key, Model, Multiply, Product, PyTree, Ratio, Variables
from fedjax8.types.rounds import (
    Aggregator,
    Algorithm,
    Attack,
    Cohort,
    Collected,
    Colluders,
    Contribution,
    Executor,
    Link,
    Partial,
    Reduced,
    RoundOutput,
    Way,
    each_once,
)
from fedjax8.types.training import (
    Adjust,
    Advance,
    BatchPlan,
    ClientRows,
    LocalTraining,
    Pool,
    StepGradient,
    Train,
    Trained,
    Training,
)

__all__ = [
    "MODEL",
    "Adjust",
    "Advance",
    "Aggregator",
    "Algorithm",
    "Array",
    "Attack",
    "Batch",
    "BatchPlan",
    "Channel",
    "ClientRows",
    "Codec",
    "Cohort",
    "Collected",
    "Colluders",
    "Contribution",
    "Executor",
    "Key",
    "Link",
    "LocalTraining",
    "Model",
    "Multiply",
    "Partial",
    "Pool",
    "Product",
    "PyTree",
    "Ratio",
    "Reduced",
    "RoundOutput",
    "Sections",
    "StepGradient",
    "Train",
    "Trained",
    "Training",
    "Variables",
    "Way",
    "check_codec",
    "each_once",
]
