"""FedPer on x + h, of which x is averaged and h each client's own: equations in NumPy, bytes, what stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.algorithms.fedavg import fedavg, training_client
from fedjax8.algorithms.fedper import fedper
from fedjax8.algorithms.parts import ServerOutput, from_parts
from fedjax8.errors import UserError
from fedjax8.paths import split
from fedjax8.types import Variables

FLOAT32 = 2e-6
ROWS = ([0.0, 1.0, 5.0], [2.0, -1.0], [3.0, 4.0, -2.0])
MEANS, SIZES = np.array([np.mean(rows) for rows in ROWS]), np.array([3, 2, 3])


def heads(state):
    return np.asarray(state.clients.arrays()["algorithm"]["private"]["head"]["h"])


@pytest.mark.parametrize(("payload", "rate"), [("params", 1.0), ("update", 0.5)])
def test_bodies_are_averaged_and_heads_stay_as_the_equations_say(toys, payload, rate):
    """Two full-batch steps a round: r = x + h - mean b is the gradient of both."""
    make = lambda local: fedper(local, payload=payload, server_learning_rate=rate)
    sim = toys.build(make, toys.with_rows(ROWS), model=toys.two_parts(), steps=2, batch_size=3)
    state, x, h = sim.init(), 1.0, np.full(3, -2.0)
    for _ in range(3):
        ends, own = np.full(3, x), h.copy()
        for _ in range(2):
            r = ends + own - MEANS
            ends, own = ends - toys.LEARNING_RATE * r, own - toys.LEARNING_RATE * r
        x, h = x + rate * (np.average(ends, weights=SIZES) - x), own
        state, line = sim.run_round(state)
    assert float(sim.variables(state).params["body"]["x"]) == pytest.approx(x, abs=FLOAT32)
    np.testing.assert_allclose(heads(state), h, atol=FLOAT32)
    assert float(sim.variables(state).params["head"]["h"]) == -2.0  # the server's is the initial one
    own = sim.algorithm.variables_of(state.server, jax.tree.map(lambda x: x[1], state.clients.arrays()["algorithm"]))
    assert own.params["head"]["h"] == heads(state)[1]
    assert own.params["body"]["x"] == sim.variables(state).params["body"]["x"]
    sent = {name.split("/", 1)[1] for d in sim.discover() for name in trees.named_leaves(d.tree)}
    assert sent == {"body/x"} and (line["uplink_bytes"], line["downlink_bytes"]) == (3 * 3 * 4, 3 * 3 * 4)


def test_clients_that_do_not_take_part_keep_their_heads(toys):
    sim = toys.build(fedper, toys.with_rows(ROWS), model=toys.two_parts(), steps=1, batch_size=3, cohort_size=1)
    state, line = sim.run_round(sim.init())
    assert line["clients"] == 1 and np.count_nonzero(heads(state) != -2.0) == 1


def test_a_client_whose_head_is_not_usable_is_left_out_and_keeps_it(toys):
    """A head that is finite and beyond what the server would bear of a body is as unusable as one that is NaN."""

    def spoil(local):
        train = training_client(local, "params", "examples")

        def client(start, extra, memory, rows, key, round_number):
            out = train(start, extra, memory, rows, key, round_number)
            worst = jnp.where(rows.start == 0, 1e30, jnp.where(rows.start == 3, jnp.nan, 0.0))
            params = out.variables.params
            new = params | {"head": {"h": params["head"]["h"] + worst}}
            return out._replace(variables=out.variables._replace(params=new))

        server = lambda state, mean, key: ServerOutput(mean.tree["params"])
        return from_parts(local, client=client, server=server, private=split(None))

    sim = toys.build(spoil, toys.with_rows(ROWS), model=toys.two_parts(), steps=1, batch_size=3)
    state, line = sim.run_round(sim.init())
    assert (line["clients"], line["excluded_clients"]) == (1, [0, 1])
    assert heads(state)[0] == heads(state)[1] == -2.0 != heads(state)[2]


def test_local_state_of_the_model_is_part_of_a_clients_own_model(toys):
    """A model whose state counts its training steps."""
    model = toys.two_parts()

    def counting(variables, batch, *, train=False, **settings):
        return model.apply(variables, batch)[0], {"steps": variables.state["steps"] + (1 if train else 0)}

    init = lambda key, batch: model.init(key, batch)._replace(state={"steps": jnp.int32(0)})
    make = lambda local: fedavg(local, model_state="local")
    counted = model._replace(init=init, apply=counting)
    sim = toys.build(make, toys.with_rows(ROWS), model=counted, steps=3, batch_size=3, cohort_size=2)
    state, _ = sim.run_round(sim.init())
    memory = state.clients.arrays()["algorithm"]
    own = [sim.algorithm.variables_of(state.server, jax.tree.map(lambda x, i=i: x[i], memory)) for i in range(3)]
    assert sorted(int(v.state["steps"]) for v in own) == [0, 3, 3]
    assert int(sim.variables(state).state["steps"]) == 0
    assert all(v.params["body"]["x"] == sim.variables(state).params["body"]["x"] for v in own)


def test_a_pattern_that_matches_nothing_is_a_user_error(toys):
    sim = toys.build(lambda local: fedper(local, private="tail"), toys.with_rows(ROWS), model=toys.two_parts(), steps=1)
    with pytest.raises(UserError, match="'tail' matches none of body, head"):
        sim.init()


def test_an_algorithm_without_personal_models_gives_the_global_one(toys):
    algorithm = toys.build(fedavg, toys.q2(), steps=1).algorithm._replace(personal=None)
    server = algorithm.init(Variables({"x": jnp.float32(3)}, {}))
    assert float(algorithm.variables_of(server, ()).params["x"]) == 3.0
