"""FedRep on x + h and on a shared subspace: equations in NumPy, what is held, steps, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8.algorithms.fedrep import PRIVATE, PUBLIC, fedrep, train_part
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.dropouts import deadline, with_dropout
from fedjax8.errors import UserError
from fedjax8.local import local_training
from fedjax8.paths import split
from fedjax8.running.forecast import steps_of
from fedjax8.systems import same
from fedjax8.types import ClientRows, Model, Pool, StepGradient, Variables

FLOAT32 = 2e-6
ROWS = ([0.0, 1.0, 5.0], [2.0, -1.0], [3.0, 4.0, -2.0])
MEANS, SIZES = np.array([np.mean(rows) for rows in ROWS]), np.array([3, 2, 3])
HEAD_EPOCHS = 4


def test_heads_are_fitted_to_the_body_then_the_body_to_heads(toys):
    make = lambda local: fedrep(local, head_epochs=HEAD_EPOCHS)
    sim = toys.build(make, toys.with_rows(ROWS), model=toys.two_parts(), epochs=2, batch_size=3)
    state, x, h = sim.init(), 1.0, np.full(3, -2.0)
    for _ in range(3):
        for _ in range(HEAD_EPOCHS):
            h = h - toys.LEARNING_RATE * (x + h - MEANS)
        ends = np.full(3, x)
        for _ in range(2):
            ends = ends - toys.LEARNING_RATE * (ends + h - MEANS)
        x = np.average(ends, weights=SIZES)
        state, line = sim.run_round(state)
    assert float(sim.variables(state).params["body"]["x"]) == pytest.approx(x, abs=FLOAT32)
    np.testing.assert_allclose(state.clients.arrays()["algorithm"]["private"]["head"]["h"], h, atol=FLOAT32)
    assert (line["uplink_bytes"], line["downlink_bytes"]) == (3 * 3 * 4, 3 * 3 * 4)


@pytest.mark.parametrize(("part", "moves", "stays"), [(PRIVATE, "head", "body"), (PUBLIC, "body", "head")])
def test_what_is_held_does_not_change_by_a_bit_whatever_the_optimizer(toys, part, moves, stays):
    """AdamW decays what it gets no gradient of, and its moments would move it on."""
    local = local_training(toys.two_parts(), optax.adamw(0.1, weight_decay=0.5), batch_plan(2, epochs=1))
    params = {"body": {"x": jnp.float32(1 / 3)}, "head": {"h": jnp.float32(-2 / 7)}}
    rows = ClientRows(Pool({"b": jnp.float32([3.0, 4.0, 5.0])}, None), jnp.int32(0), jnp.int32(3))
    done = train_part(local, split(None), part, Variables(params, {}), rows, jax.random.key(0), jnp.int32(5))
    assert jax.tree.leaves(done.variables.params[stays]) == jax.tree.leaves(params[stays])
    assert jax.tree.leaves(done.variables.params[moves]) != jax.tree.leaves(params[moves])
    assert float(done.report["train_examples"]) == 2 + 1 + 2 + 1 + 2  # five steps over batches of 2 and 1


def test_clients_with_a_shared_subspace_find_it():
    """y = w_i' B' x with B of two columns in ten dimensions; the largest principal angle to B goes towards 0."""
    dimensions, rank, clients, rows = 10, 2, 20, 40
    rng = np.random.default_rng(0)
    true = np.linalg.qr(rng.normal(size=(dimensions, rank)))[0]
    x = rng.normal(size=(clients, rows, dimensions))
    y = np.einsum("crd,dk,ck->cr", x, true, rng.normal(size=(clients, rank)))
    columns = {"x": np.float32(x.reshape(-1, dimensions)), "y": np.float32(y.reshape(-1))}
    start = np.float32(np.linalg.qr(rng.normal(size=(dimensions, rank)))[0])
    model = Model(
        init=lambda key, batch: Variables({"body": jnp.asarray(start), "head": {"w": jnp.zeros(rank)}}, {}),
        apply=lambda v, batch, **_: (batch["x"] @ v.params["body"] @ v.params["head"]["w"], v.state),
        loss=lambda out, batch: 0.5 * (out - batch["y"]) ** 2,
        metrics=lambda out, batch: {},
    )
    local = local_training(model, optax.sgd(0.3), batch_plan(rows, epochs=1))
    data = FederatedData.from_owners(columns, np.repeat(np.arange(clients), rows), clients)
    sim = _simulate(fedrep(local), data)
    state, _ = sim.run_rounds(sim.init(), 60)

    def largest_angle(body):
        inside = np.linalg.svd(true.T @ np.linalg.qr(np.float64(body))[0], compute_uv=False)
        return np.arccos(np.clip(inside.min(), 0, 1))

    assert largest_angle(start) > 0.5
    assert largest_angle(sim.variables(state).params["body"]) < 0.02


def _simulate(algorithm, data):
    from fedjax8.codecs.none import none
    from fedjax8.engine.simulation import simulate
    from fedjax8.executors.vmap import vmap

    settings = {"uplink": none(), "downlink": none(), "executor": vmap()}
    return simulate(algorithm, data, cohort_size=data.num_clients, **settings)


def test_the_steps_for_heads_take_time_too(toys):
    """Five passes of a step of a second each are in time for 5.5 seconds; the client of four rows takes ten steps, of
    which the two for the body alone would be in time."""
    make = lambda local: with_dropout(fedrep(local, head_epochs=4), deadline(5.5))
    data = toys.with_rows((*ROWS, [1.0] * 4))
    links = same(1.0, down_bandwidth=1e9, up_bandwidth=1e9)
    sim = toys.build(make, data, model=toys.two_parts(), epochs=1, batch_size=3, system=links)
    assert sim.run_round(sim.init())[1]["dropped"] == 1


def test_gradients_that_are_accounted_for_are_refused(toys):
    sim = toys.build(
        fedrep,
        toys.with_rows(ROWS),
        model=toys.two_parts(),
        epochs=1,
        batch_size=3,
        gradient=StepGradient(accounted=True),
    )
    with pytest.raises(UserError, match="not those of the batch plan"):
        sim.init()


def test_no_epoch_for_the_head_is_refused(toys):
    for epochs in (0, 2**31 - 1):  # steps are counted in int32
        with pytest.raises(ValueError, match=f"head_epochs must be from 1 to 10000, got {epochs}"):
            toys.build(lambda local, epochs=epochs: fedrep(local, head_epochs=epochs), toys.q2(), steps=1)


def test_a_forecast_counts_the_steps_on_the_head(toys):
    """Batches of 2 of 4 and 3 rows: five times 2 steps on the head and 2 on the body, of both clients."""
    data = toys.with_rows(([0.0] * 4, [1.0] * 3))
    make = lambda local: fedrep(local, "head", head_epochs=5)
    sim = toys.build(make, data, model=toys.two_parts(), batch_size=2, epochs=1)
    found = steps_of(sim, rounds=3)
    assert (found.least, found.median, found.most, found.run) == (12, 12.0, 12, 3 * 24)
