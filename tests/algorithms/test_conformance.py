"""Every algorithm file, found by itself, on every one of its examples: what `types.Algorithm` promises.

One simulation an example, on clients of several sizes of which one has no rows and one may send NaN: the column `bomb`
is added to every gradient and is an input of the compiled program.
"""

import functools
import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fedjax8 import adapters, attacks, codecs, executors, participation
from fedjax8.codecs import wire
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.dropouts import random, with_dropout
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.local import local_training
from fedjax8.lookup import component_names
from fedjax8.models.linen import from_linen

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SIZES = (3, 1, 0, 4, 2, 5)
EMPTY, GUILTY = 2, 4
CLIENTS, ROWS = len(SIZES), sum(SIZES)
SUMMED = {"rtol": 5e-5, "atol": 2e-6}  # float32 sums of a few numbers near 1, in another order, two rounds long


class Net(nn.Module):
    """A layer to adapt and a head."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.tanh(nn.Dense(3, name="first")(x)))


def adapted(model):
    return adapters.lora(model, 2, alpha=2.0, targets="first")


ADAPTERS = {"fedlora": adapted, "rolora": adapted, "hetlora": adapted}
"""What an algorithm's clients must train; others take any model."""
NEEDS_CLIPS = {"fedavg-3": adapters.qat}
LOSSLESS = ("dp_fedavg-2",)
"""Examples that refuse a lossy uplink."""
NAMES_NOBODY = ("dp_fedavg", "centralized", "ibcd")
"""Algorithms that must not show whose update was unusable, whose whole round is taken back, or whose one client of the
first round is another."""
TOKENS = {"ibcd": 1, "api_bcd": CLIENTS}
"""Algorithms with walking tokens, to their number."""


def cases(package="fedjax8.algorithms"):
    """(id, factory of an algorithm over local training, adapter) of every example."""
    for name in component_names(package):
        module = importlib.import_module(f"{package}.{name}")
        for index, settings in enumerate(module.EXAMPLES):
            adapter = NEEDS_CLIPS.get(f"{name}-{index}", ADAPTERS.get(name, lambda model: model))
            yield f"{name}-{index}", (functools.partial(getattr(module, name), **settings), adapter)


CASES = dict(cases())
FIRST = [pytest.param(name, marks=[] if name.endswith("-0") else pytest.mark.slow) for name in CASES]
"""Each algorithm; its other examples are in the slow tests, since each compiles a round of its own."""


def with_bombs(model):
    """The model, its loss's gradient by every parameter enlarged by the column `bomb`, its loss as it was."""

    def apply(variables, batch, **options):
        outputs, state = model.apply(variables, batch, **options)
        still = jax.lax.stop_gradient(variables.params)
        nothing = sum(jnp.sum(x - y) for x, y in zip(*map(jax.tree.leaves, (variables.params, still)), strict=True))
        return (outputs, jnp.broadcast_to(nothing, batch["bomb"].shape)), state

    def loss(outputs, batch):
        return model.loss(outputs[0], batch) + batch["bomb"] * outputs[1]

    return model._replace(apply=apply, loss=loss, metrics=lambda outputs, batch: model.metrics(outputs[0], batch))


@functools.cache
def data() -> FederatedData:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    columns = {"x": x, "y": np.int32(x[:, 0] > 0), "bomb": np.zeros(ROWS, np.float32)}
    return FederatedData.from_owners(columns, np.repeat(np.arange(CLIENTS), SIZES), CLIENTS)


def simulation(name, *, codec=None, executor=None, around=lambda algorithm: algorithm):
    make, adapter = CASES[name]
    model = with_bombs(adapter(from_linen(Net())))
    local = local_training(model, optax.sgd(0.1), batch_plan(2, epochs=1))
    tokens = TOKENS.get(name.split("-")[0])
    return simulate(
        around(make(local)),
        data(),
        cohort_size=tokens or CLIENTS,
        participation=participation.walk() if tokens else None,
        uplink=codec if codec and name not in LOSSLESS else codecs.none(),
        downlink=codec or codecs.none(),
        executor=executor or executors.loop(),
        rounds_per_call=4,
    )


@functools.cache
def plain(name):
    """The simulation of an example that several tests run, with 8-bit messages."""
    return simulation(name, codec=codecs.fp8())


@functools.cache
def unbroken(name):
    """(states, lines) before and after each of three rounds."""
    sim, states, lines = plain(name), [plain(name).init()], []
    for _ in range(3):
        state, line = sim.run_round(states[-1])
        states.append(state)
        lines.append(line)
    return states, lines


def with_bomb(sim, state, bomb):
    """(state, line) of the next round, in which one client's gradients are enlarged by `bomb`."""
    begun = sim.begin(state, 1)
    column = np.zeros(ROWS, np.float32)
    first = sum(SIZES[:GUILTY])
    column[first : first + SIZES[GUILTY]] = bomb
    columns = {**sim.columns, "bomb": sim.columns["bomb"] * 0 + column}
    (carried, outcomes), new = sim.programs.compiled((columns, begun.carried, begun.settings), begun.share)
    state, (line,) = sim.finish(state, begun.plan, carried, outcomes, new)
    return state, line


def carried(state):
    """Arrays that a state holds."""
    return jax.tree.leaves(jax.device_get((state.server, state.down_states, state.clients.arrays())))


def assert_finite(state):
    """All of a state; a threshold may be infinite by its setting."""
    server = state.server._replace(threshold=0.0) if hasattr(state.server, "threshold") else state.server
    for leaf in jax.tree.leaves(jax.device_get((server, state.down_states, state.clients.arrays()))):
        assert np.isfinite(np.asarray(leaf, np.float64)).all()


def has_loss(name, line):
    """Whether a round has a training loss; the only client of a round may have no rows."""
    return np.isfinite(line["train_loss"]) or TOKENS.get(name.split("-")[0]) == 1


def test_algorithms_are_found_and_take_local_training_first():
    assert {name.split("-")[0] for name in CASES} == set(component_names("fedjax8.algorithms"))
    assert all(next(iter(inspect.signature(make.func).parameters)) == "local" for make, _ in CASES.values())


@pytest.mark.parametrize("name", FIRST)
def test_an_example_runs_and_its_bytes_are_those_of_the_wire(name):
    states, lines = unbroken(name)
    sim, sent = plain(name), states[-1].ledger.sent
    for state in states:
        assert_finite(state)
    assert all(has_loss(name, line) and not line.get("excluded") for line in lines)
    varying = {(found.channel.direction, found.channel.name) for found in sim.discover() if found.channel.part}
    for found in sim.discover():
        if (found.channel.direction, found.channel.name) in varying:
            continue  # which of its parts are sent depends on the client: see the algorithm's own tests
        tree = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found.tree)
        message, _ = found.codec.encode(jax.random.key(0), found.codec.init(tree), tree)
        assert found.channel.message_bytes == len(wire.pack(message)) - wire.HEADER_BYTES
    for direction in ("up", "down"):
        counted = sum(n * c.message_bytes for c, n in sent.items() if c.direction == direction)
        assert lines[-1][f"{direction}link_bytes"] == counted


@pytest.mark.parametrize("name", FIRST)
def test_a_checkpoint_in_the_middle_changes_no_bit(name):
    sim, (states, lines) = plain(name), unbroken(name)
    half = states[1]
    saved = jax.device_get((half.server, half.down_states, half.clients.arrays()))
    store = sim.init().clients.with_arrays(saved[2])
    state = sim.place(half._replace(server=saved[0], down_states=saved[1], clients=store))
    for _ in range(2):
        state, line = sim.run_round(state)
    np.testing.assert_equal(line, lines[-1])
    for got, want in zip(carried(state), carried(states[-1]), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", FIRST)
def test_a_client_of_nan_leaves_all_states_finite(name):
    sim, (states, _) = plain(name), unbroken(name)
    state, line = with_bomb(sim, states[0], np.nan)
    assert_finite(state)
    assert np.isfinite(line["train_loss"]) or line["rejected"]
    named = line.get("excluded_clients", [])
    assert named == ([] if name.startswith(NAMES_NOBODY) else [GUILTY])
    assert name.startswith("fda") or line.get("excluded", 0) == len(named)  # of FDA's workers, in every exchange
    state, line = sim.run_round(state)
    assert_finite(state)
    assert "excluded_clients" not in line


EXECUTORS = {
    "vmap": executors.vmap(),
    "chunked": executors.chunked(4),  # two clients of padding
    "pmap": executors.pmap(),  # on four devices: two clients of padding
}


@functools.cache
def by_loop(name):
    """The state after two rounds with float32 messages, one client after another."""
    sim = simulation(name)
    return sim.run_rounds(sim.init(), 2)


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", CASES)
def test_executors_and_padding_change_the_order_of_sums_alone(name, executor):
    sim = simulation(name, executor=EXECUTORS[executor])
    (want, want_lines), (got, lines) = by_loop(name), sim.run_rounds(sim.init(), 2)
    for a, b in zip(carried(got), carried(want), strict=True):
        np.testing.assert_allclose(a, b, **SUMMED)
    assert [line["uplink_bytes"] for line in lines] == [line["uplink_bytes"] for line in want_lines]
    assert [line["downlink_bytes"] for line in lines] == [line["downlink_bytes"] for line in want_lines]
    assert [line["clients"] for line in lines] == [line["clients"] for line in want_lines]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_dropouts_and_an_attack_leave_all_states_finite_or_are_refused(name):
    wrappers = {
        "dropouts": lambda algorithm: with_dropout(algorithm, random(0.4)),
        "attack": lambda algorithm: attacks.attacked(algorithm, attacks.sign_flip(0.3, scale=10.0)),
    }
    for what, around in wrappers.items():
        try:
            sim = simulation(name, codec=codecs.fp8(), around=around)
            state, lines = sim.run_rounds(sim.init(), 3)
        except UserError as error:
            assert "\n" not in str(error) and what[:4] in str(error), error
            continue
        assert_finite(state)
        assert all(has_loss(name, line) for line in lines)
        state, _ = with_bomb(sim, state, np.nan)
        assert_finite(state)
        if what == "dropouts":
            assert sum(line["dropped"] for line in lines) > 0
            sent = [c for c in state.ledger.sent if c.direction == "up" and state.ledger.sent[c]]
            down = [c for c in state.ledger.sent if c.direction == "down"]
            assert not sent or sum(state.ledger.sent[c] for c in sent) < sum(state.ledger.sent[c] for c in down) * len(
                sent
            )
