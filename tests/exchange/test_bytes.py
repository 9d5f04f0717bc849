"""The bytes in the metrics are the lengths of the messages, serialized one by one."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from fedjax8 import trees
from fedjax8.adapters.inputs import inputs
from fedjax8.adapters.qat import qat
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.codecs.fp8 import fp8
from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.executors.loop import loop
from fedjax8.local import local_training
from fedjax8.models.linen import from_linen


def serialize(message) -> bytes:
    """The message as it would travel: its leaves' bytes, in tree order."""
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(message))


def recording(codec, lengths: list[int]):
    """`codec`, noting the length of every message it encodes when it really runs."""

    def encode(key, state, tree):
        message, state = codec.encode(key, state, tree)
        jax.debug.callback(lambda m: lengths.append(len(serialize(m))), message)
        return message, state

    return codec._replace(encode=encode)


@pytest.mark.parametrize(
    ("adapter", "codec", "make", "copies", "hidden"),
    [
        (qat, fp8, fedavg, 1, [nn.Dense(8), nn.relu]),
        (lambda model: model, none, fedavg, 1, []),
        (lambda model: model, fp8, functools.partial(scaffold, learning_rate=0.1), 2, []),
    ],
    ids=["fp8fedavg", "float32", "fp8 scaffold"],
)
def test_metrics_count_exactly_what_was_serialized(adapter, codec, make, copies, hidden, rng):
    columns = {
        "x": rng.integers(0, 256, (60, 4, 4, 1), dtype=np.uint8),
        "y": rng.integers(0, 3, 60).astype(np.int32),
    }
    data = FederatedData.from_owners(columns, np.repeat(np.arange(6), [5, 8, 10, 12, 12, 13]), 6)
    module = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), *hidden, nn.Dense(3)])
    model = inputs(adapter(from_linen(module)), 0.5, 0.3)
    local = local_training(model, optax.sgd(0.1), batch_plan(4, epochs=1))
    up, down = [], []
    sim = simulate(
        make(local),
        data,
        cohort_size=4,
        uplink=recording(codec(), up),
        downlink=recording(codec(), down),
        executor=loop(),
    )
    state, rounds = sim.init(), 3
    for _ in range(rounds):
        state, metrics = sim.run_round(state)
    jax.effects_barrier()
    assert (len(up), len(down)) == (4 * rounds, rounds)
    assert metrics["uplink_bytes"] == sum(up)
    assert metrics["downlink_bytes"] == 4 * sum(down)  # one encoding, received by each client of the cohort
    weights = sum(x.size for n, x in trees.named_leaves(sim.variables(state).params).items() if not trees.is_clip(n))
    exchanges = 2 * 4 * rounds
    assert state.ledger.float32_bytes == 4 * weights * exchanges * copies
