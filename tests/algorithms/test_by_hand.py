"""Steps of algorithms worked out in NumPy on clients whose rows differ, and the keys that clients draw from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8.adapters.lora import lora
from fedjax8.algorithms.aggregators import norm_bound
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.hetlora import hetlora
from fedjax8.algorithms.parts import ClientOutput, ServerOutput, from_parts
from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.executors.loop import loop
from fedjax8.executors.vmap import vmap
from fedjax8.local import local_training
from fedjax8.models.mlp import mlp
from fedjax8.types import ClientRows, Pool, Trained, Variables

FLOAT32 = 2e-6
ROWS = ([0.0, 1.0, 5.0], [2.0, -1.0], [3.0, 4.0, -2.0])


def test_the_full_gradient_weighs_rows_alike_where_the_last_batch_is_not_full(toys):
    local = local_training(toys.quadratic(), optax.sgd(0.1), batch_plan(2, epochs=1))
    columns = {"a": jnp.ones(5), "b": jnp.float32([1, 2, 30, 4, 5])}
    for start, size in ((0, 3), (1, 4), (2, 1)):
        rows = ClientRows(Pool(columns, None), jnp.int32(start), jnp.int32(size))
        gradient = local.full_gradient(Variables({"x": jnp.float32(0.5)}, {}), rows, jax.random.key(0))["x"]
        assert float(gradient) == pytest.approx(0.5 - np.mean([1, 2, 30, 4, 5][start : start + size]), rel=1e-6)


def drawing(clients):
    """Every client reports a uniform draw of its key, at its own place; the server reports what arrived."""

    def make(local):
        def client(start, extra, memory, rows, key, round_number):
            place = jnp.zeros(clients).at[rows.start].set(1.0)
            return ClientOutput(
                {"place": place}, jnp.float32(1), start, (), {"trained": place * jax.random.uniform(key)}
            )

        def server(state, mean, key):
            return ServerOutput(state.variables.params, (), {"sent": mean.tree["place"] * mean.weight})

        return from_parts(local, client=client, server=server)

    def encode(key, state, tree):
        return jax.tree.map(lambda x: x * jax.random.uniform(key) if x.ndim else x, tree), state

    return make, none()._replace(encode=encode)


@pytest.mark.parametrize("executor", [loop, vmap])
def test_every_client_draws_its_own_numbers_in_every_round_of_a_call(toys, executor):
    """To train and to encode: 2 x 4 clients x 3 rounds, all different, and the same when rounds come one by one."""
    make, uplink = drawing(4)
    sim = toys.build(make, toys.clients([1.0] * 4, [1.0] * 4), steps=1, uplink=uplink, executor=executor())
    _, lines = sim.run_rounds(sim.init(), 3)
    drawn = np.array([line[what] for line in lines for what in ("trained", "sent")])
    assert drawn.shape == (6, 4) and drawn.min() > 0
    assert len(np.unique(drawn)) == drawn.size
    state, alone = sim.init(), []
    for _ in range(3):
        state, line = sim.run_round(state)
        alone += [line["trained"], line["sent"]]
    np.testing.assert_array_equal(drawn, alone)


def test_the_first_numbers_of_a_run_are_those_they_have_been(toys):
    """Pinned: what cohorts, keys and shuffles draw for seed 3. If they change, so do the results of every run."""
    rng = np.random.default_rng(0)
    data = toys.with_rows(rng.normal(size=(6, 7)).round(2).tolist())
    sim = toys.build(fedavg, data, cohort_size=3, batch_size=2, steps=3, seed=3)
    xs = toys.trajectory(sim, 4)
    np.testing.assert_allclose(xs, PINNED, atol=FLOAT32)


def test_a_bound_inside_a_bound_holds_too():
    """Shortened to 2 and left out beyond 1, or shortened to 2 and then to 0.5: the changes are 3 and 0.4 long.

    A clip gives away up to 6e-6 of its bound for the rounding of norms.
    """
    long, short = {"x": jnp.float32([3.0])}, {"x": jnp.float32([-0.4])}
    outside = norm_bound(2.0, then=norm_bound(1.0, exclude=True))
    assert not bool(outside.admit(long)[1]) and bool(outside.admit(short)[1])
    twice = norm_bound(2.0, then=norm_bound(0.5))
    np.testing.assert_allclose(twice.admit(long)[0]["x"], [0.5], rtol=1e-5)
    np.testing.assert_allclose(twice.admit(short)[0]["x"], [-0.4], rtol=1e-6)
    first = norm_bound(1.0, exclude=True, then=norm_bound(2.0))
    assert not bool(first.admit(long)[1]) and bool(first.admit(short)[1])


def test_no_step_of_hetlora_leaves_the_rank_of_its_client():
    """Clients of ranks 1, 2 and 3 whose every gradient is 1, as noise might make it: that many columns move."""
    ranks = (1, 2, 3)

    def make(local):
        def train(variables, rows, key, *, adjust):
            moved = adjust(jax.tree.map(jnp.ones_like, variables.params), variables.params, {}, key)
            pair = moved["Dense_0"]["lora"]
            columns = jnp.sum(jnp.any(pair["a"] != 0, axis=0)), jnp.sum(jnp.any(pair["b"] != 0, axis=1))
            return Trained(variables, jnp.int32(1), {"columns": columns[0], "rows": columns[1]})

        return hetlora(local._replace(train=train), ranks)

    model = lora(mlp(hidden=(5,), num_classes=2), 3, alpha=1.0, targets="Dense_0", learn="both")
    local = local_training(model, optax.sgd(0.1), batch_plan(1, steps=1))
    columns = {"x": np.ones((3, 4), np.float32), "y": np.zeros(3, np.int32)}
    data = FederatedData.from_owners(columns, np.arange(3), 3)
    codecs = {"uplink": none(), "downlink": none()}
    sim = simulate(make(local), data, cohort_size=3, executor=loop(), **codecs)
    metrics = sim.run_round(sim.init())[1]
    assert (metrics["columns"], metrics["rows"]) == (sum(ranks), sum(ranks))


PINNED = [0.034715, 0.032474, 0.07338, 0.017724]
