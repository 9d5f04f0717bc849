"""Clients' own models on their own held-out rows, against NumPy, by every executor; fine-tuned, by a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fedper import fedper
from fedjax8.algorithms.local_only import local_only
from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine import client_evaluation
from fedjax8.engine.side_by_side import side_by_side
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.executors import chunked, loop, pmap, vmap
from fedjax8.local import local_training, scheduled
from fedjax8.types import Model, Variables

CLASSES, FEATURES, CLIENTS = 4, 3, 7
SIZES = [5, 0, 9, 1, 2, 0, 4]
"""Held-out rows of each client."""


def linear(traced) -> Model:
    """Scores x kernel, of small integers; `traced` is told of every trace."""

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        traced.append(batch["x"].shape)
        return batch["x"] @ variables.params["kernel"], variables.state

    return Model(
        init=lambda key, batch: Variables({"kernel": jnp.zeros((FEATURES, CLASSES))}, {}),
        apply=apply,
        loss=lambda scores, batch: -jnp.take_along_axis(jax.nn.log_softmax(scores), batch["y"][:, None], 1)[:, 0],
        metrics=lambda scores, batch: {"accuracy": jnp.float32(jnp.argmax(scores, -1) == batch["y"])},
    )


def rows(sizes, seed, order=True):
    rng, count = np.random.default_rng(seed), sum(sizes)
    columns = {"x": rng.integers(-3, 4, (count, FEATURES)).astype(np.float32)}
    columns |= {"y": rng.integers(0, CLASSES, count).astype(np.int32)}
    owners = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return FederatedData.from_owners(columns, owners, len(sizes))


def own_kernels():
    return np.random.default_rng(5).integers(-3, 4, (CLIENTS, FEATURES, CLASSES)).astype(np.float32)


def with_own_models(sim):
    """A state in which every client remembers its own kernel."""
    state = sim.init()
    memories = {"algorithm": Variables({"kernel": own_kernels()}, {}), "uplink": {}}
    return state._replace(clients=state.clients.write(np.arange(CLIENTS), memories))


def expected(held, clients):
    """(accuracy, mean cross-entropy) of each client by NumPy."""
    found = []
    for client in clients:
        own = held.client(client)
        scores = own["x"].astype(np.float64) @ own_kernels()[client]
        losses = np.log(np.exp(scores).sum(-1)) - scores[np.arange(len(scores)), own["y"]]
        found.append((np.mean(np.argmax(scores, -1) == own["y"]), losses.mean()))
    return np.array(found).T


def build(executor, traced=None):
    local = local_training(linear([] if traced is None else traced), optax.sgd(0.1), batch_plan(2, epochs=1))
    data = rows([2] * CLIENTS, 1)
    settings = {"uplink": none(), "downlink": none(), "executor": executor}
    return simulate(local_only(local), data, cohort_size=2, **settings)


@pytest.mark.parametrize(
    "executor", [loop, vmap, lambda: chunked(2), lambda: pmap(1, 2), lambda: pmap(2, 3)], ids=lambda e: e.__name__
)
def test_scores_are_those_of_each_clients_own_model_on_its_own_rows(executor, monkeypatch):
    """Two clients a call on a device and batches of four rows: several of both, the last ones padded."""
    monkeypatch.setattr(client_evaluation, "CLIENTS_PER_CALL", 2)
    monkeypatch.setattr(client_evaluation, "BATCH_SIZE", 4)
    traced = []
    sim, held = build(executor(), traced), rows(SIZES, 2)
    state = with_own_models(sim)
    found = sim.evaluate_clients(state, np.arange(CLIENTS), held)
    kept = [0, 2, 3, 4, 6]
    assert (found.ids.tolist(), found.counts.tolist(), found.without_rows) == (kept, [5, 9, 1, 2, 4], 2)
    accuracy, loss = expected(held, kept)
    np.testing.assert_allclose(found.metrics["accuracy"], accuracy, rtol=1e-7)  # sums of few ones are exact
    np.testing.assert_allclose(found.metrics["loss"], loss, rtol=1e-6)
    before = len(traced)
    later = sim.evaluate_clients(state._replace(round=1), np.int32([4, 1, 2, 6, 0]), held)
    assert later.ids.tolist() == [4, 2, 6, 0] and later.without_rows == 1
    np.testing.assert_array_equal(later.metrics["accuracy"], found.metrics["accuracy"][[3, 1, 4, 0]])
    assert len(traced) <= before + 1  # the size of a row is looked up again; nothing is compiled
    assert state.ledger.sent == {}


def test_the_global_model_is_everybodys_where_clients_have_none_of_their_own(toys):
    """x = 3 everywhere: a client's loss is the mean of 1/2 (3 - b)^2 over its held-out rows."""
    sim = toys.build(fedavg, toys.q2(), start=3.0, steps=1)
    held = toys.with_rows(([1.0, 2.0], [5.0]))
    found = sim.evaluate_clients(sim.init(), np.arange(2), held)
    np.testing.assert_allclose(found.metrics["loss"], [(2.0 + 0.5) / 2, 2.0])


@pytest.mark.parametrize("feed_mode", ["resident", "streamed"])
def test_fine_tuning_trains_each_client_and_leaves_no_trace(toys, feed_mode):
    """Three full-batch steps at 0.1 from x = 3 towards the mean b of a client's training rows; the third client has
    none, and stays."""
    train = ([0.0, 2.0], [4.0], [], [7.0])
    sim = toys.build(
        fedavg, toys.with_rows(train), start=3.0, steps=1, batch_size=2, cohort_size=2, feed_mode=feed_mode
    )
    held = toys.with_rows(([1.0, 2.0], [5.0], [6.0], [0.0]))
    state = sim.init()
    found = sim.evaluate_clients(state, np.arange(4), held, fine_tune_steps=3)
    x = [b + (3.0 - b) * 0.9**3 for b in (1.0, 4.0, 3.0, 7.0)]
    losses = [0.5 * ((x[0] - 1) ** 2 + (x[0] - 2) ** 2) / 2, *(0.5 * (np.array(x[1:]) - [5, 6, 0]) ** 2)]
    np.testing.assert_allclose(found.metrics["loss"], losses, rtol=1e-6)
    assert float(sim.variables(state).params["x"]) == 3.0 and state.ledger.sent == {}


def test_fine_tuning_takes_the_rate_of_the_last_round_and_the_present_scale(toys):
    """Rates of rounds 0, 1, 2 are 0, 0.5, 0.2 times the optimizer's 0.1; a callback has halved them."""
    rates = jnp.array([0.0, 0.5, 0.2, 0.0])
    sim = toys.build(
        lambda local: fedavg(scheduled(local, lambda number: rates[number])), toys.q3(), start=3.0, steps=1
    )
    held, start = toys.with_rows(([0.0], [0.0])), sim.init()
    for rounds, scale, rate in ((0, None, 0.0), (1, None, 0.0), (2, None, 0.05), (3, None, 0.02), (3, 0.5, 0.01)):
        state = start._replace(round=rounds, step_scale=scale)
        found = sim.evaluate_clients(state, np.arange(2), held, fine_tune_steps=1)
        x = np.array([0.0, 1.0]) + (3.0 - np.array([0.0, 1.0])) * (1 - rate)
        np.testing.assert_allclose(found.metrics["loss"], 0.5 * x**2, rtol=1e-6)


def test_what_cannot_be_evaluated_is_refused(toys):
    sim = toys.build(fedavg, toys.q2(), steps=1)
    state, held = sim.init(), toys.with_rows(([1.0], []))
    for ids, other, steps, message in (
        ([1], held, 0, "none of the 1 clients asked for has held-out rows"),
        ([0, 0], held, 0, "ids must be different client numbers"),
        ([0, 2], held, 0, "ids run from 0 to 2; there are 2 clients"),
        ([0], toys.with_rows(([1.0],)), 0, "held-out rows are of 1 clients, but 2 are registered"),
        ([0], held, -1, "fine_tune_steps is -1"),
    ):
        with pytest.raises(UserError, match=message):
            sim.evaluate_clients(state, np.int32(ids), other, steps)
    make = lambda local: fedavg(local)._replace(privacy=lambda rounds: {"epsilon": 1.0})
    private = toys.build(make, toys.q2(), steps=1)
    with pytest.raises(UserError, match="fine_tune_steps are not accounted for"):
        private.evaluate_clients(state, np.arange(1), held, 1)


def test_runs_side_by_side_are_evaluated_as_those_by_themselves(toys):
    """Their servers' states lie on other devices than what their clients remember."""
    data, held = toys.with_rows(([0.0, 2.0], [4.0])), toys.with_rows(([1.0], [5.0, 6.0]))
    settings = {"model": toys.two_parts(), "steps": 1, "batch_size": 2, "executor": chunked(1)}
    first = toys.build(fedper, data, **settings)
    second = simulate(
        first.algorithm, data, cohort_size=2, uplink=none(), downlink=none(), seed=1, executor=chunked(1), beside=first
    )
    states, _ = side_by_side([first, second], pmap(1, 2))([first.init(), second.init()], [1, 1])
    alone, _ = second.run_rounds(second.init(), 1)
    found, expected = (second.evaluate_clients(state, np.arange(2), held) for state in (states[1], alone))
    np.testing.assert_allclose(found.metrics["loss"], expected.metrics["loss"], rtol=1e-6)
