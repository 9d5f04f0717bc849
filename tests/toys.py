"""A model of one number, f(x) = a/2 (x - b)^2 per row, small enough to solve by hand: the oracle of the algorithms.

Imported by tests as a fixture (`toys` in conftest), since test folders are not packages.
"""

import jax.numpy as jnp
import numpy as np
import optax

from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.executors.loop import loop
from fedjax8.local import local_training
from fedjax8.types import Model, Variables

LEARNING_RATE = 0.1


def quadratic(start: float = 0.0) -> Model:
    """The model x with loss a/2 (x - b)^2 on rows with columns a and b; its parameter is a scalar at `params/x`."""

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        return jnp.broadcast_to(variables.params["x"], batch["a"].shape), variables.state

    return Model(
        init=lambda key, batch: Variables({"x": jnp.float32(start)}, {}),
        apply=apply,
        loss=lambda x, batch: 0.5 * batch["a"] * (x - batch["b"]) ** 2,
        metrics=lambda x, batch: {},
    )


def two_parts() -> Model:
    """The model x + h with loss 1/2 (x + h - b)^2 on rows with a column b; parameters `body/x` and `head/h`."""

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        total = variables.params["body"]["x"] + variables.params["head"]["h"]
        return jnp.broadcast_to(total, batch["b"].shape), variables.state

    return Model(
        init=lambda key, batch: Variables({"body": {"x": jnp.float32(1)}, "head": {"h": jnp.float32(-2)}}, {}),
        apply=apply,
        loss=lambda y, batch: 0.5 * (y - batch["b"]) ** 2,
        metrics=lambda y, batch: {"accuracy": jnp.float32(jnp.abs(y - batch["b"]) < 0.5)},
    )


def clients(a, b, rows=None) -> FederatedData:
    """One client per entry of `a` and `b`, with that many equal `rows` (default one each)."""
    rows = [1] * len(a) if rows is None else rows
    owners = np.repeat(np.arange(len(a)), rows)
    columns = {"a": np.float32(a)[owners], "b": np.float32(b)[owners]}
    return FederatedData.from_owners(columns, owners, len(a))


def with_rows(b, a=None) -> FederatedData:
    """One client per entry of `b`, with these rows of its own: `b` (and `a`, default ones) list the rows of each."""
    owners = np.repeat(np.arange(len(b)), [len(rows) for rows in b])
    columns = {"a": np.ones(len(owners), np.float32) if a is None else np.float32(np.concatenate(a))}
    return FederatedData.from_owners(columns | {"b": np.float32(np.concatenate(b))}, owners, len(b))


def build(
    make_algorithm,
    data,
    *,
    start=0.0,
    cohort_size=None,
    seed=0,
    executor=None,
    batch_size=1,
    rounds_per_call=None,
    beside=None,
    uplink=None,
    optimizer=None,
    gradient=None,
    participation=None,
    model=None,
    feed_mode="auto",
    system=None,
    **length,
):
    """A simulation of `make_algorithm(local)` on `data`, by default with plain SGD on the clients and no codecs."""
    model = quadratic(start) if model is None else model
    plan = batch_plan(batch_size, **length)
    local = local_training(model, optimizer or optax.sgd(LEARNING_RATE), plan, gradient)
    return simulate(
        make_algorithm(local),
        data,
        cohort_size=cohort_size or data.num_clients,
        uplink=none() if uplink is None else uplink,
        downlink=none(),
        seed=seed,
        executor=loop() if executor is None else executor,
        rounds_per_call=rounds_per_call,
        beside=beside,
        participation=participation,
        feed_mode=feed_mode,
        system=system,
    )


def trajectory(sim, rounds: int) -> list[float]:
    """The global x after each round."""
    state, xs = sim.init(), []
    for _ in range(rounds):
        state, _ = sim.run_round(state)
        xs.append(float(sim.variables(state).params["x"]))
    return xs


def q2() -> FederatedData:
    """Unequal curvature: f_1 = x^2 / 2, f_2 = 4 (x - 1)^2 / 2; the mean's optimum is 0.8."""
    return clients([1.0, 4.0], [0.0, 1.0])


def q3() -> FederatedData:
    """Unequal work: f_1 = x^2 / 2 with one row, f_2 = (x - 1)^2 / 2 with ten; the uniform mean is best at 0.5."""
    return clients([1.0, 1.0], [0.0, 1.0], [1, 10])
