"""Federated LoRA a factor at a time, and with ranks of the clients' own: against FFA-LoRA and clients by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fedjax8 import trees
from fedjax8.adapters.lora import lora
from fedjax8.algorithms import _lora_merge
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.hetlora import _by_rank, hetlora
from fedjax8.algorithms.rolora import rolora
from fedjax8.codecs.fp8 import fp8
from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.executors.chunked import chunked
from fedjax8.executors.vmap import vmap
from fedjax8.local import local_training
from fedjax8.models.linen import from_linen

K, HIDDEN, R, CLASSES, CLIENTS = 4, 5, 3, 3, 3
A, B, HEAD = 4 * K * R, 4 * R * HIDDEN, 4 * (HIDDEN + 1) * CLASSES
"""Bytes."""
SIZES = (2, 4, 6)
MOMENTUM = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.2, momentum=0.9))


class Net(nn.Module):
    """A layer to adapt and a head."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES, name="head")(nn.tanh(nn.Dense(HIDDEN, name="first")(x)))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    columns = {"x": rng.normal(size=(12, K)).astype(np.float32), "y": rng.integers(0, CLASSES, 12).astype(np.int32)}
    return FederatedData.from_owners(columns, np.repeat(np.arange(CLIENTS), SIZES), CLIENTS)


def run(make, data, rounds=3, learn="both", executor=None, codec=None, rank=R, optimizer=MOMENTUM):
    """(parameters at first and after each round, all metrics) of full batches, three steps a round."""
    model = lora(from_linen(Net()), rank, alpha=4.0, targets="first", learn=learn)
    local, codec = local_training(model, optimizer, batch_plan(6, steps=3)), codec or none()
    executor = executor or chunked(1)
    sim = simulate(make(local), data, cohort_size=CLIENTS, uplink=codec, downlink=codec, executor=executor
    )  # fmt: skip
    states, lines = [sim.init()], []
    for _ in range(rounds):
        state, line = sim.run_round(states[-1])
        states.append(state)
        lines.append(line)
    everything = [sim.variables(state) for state in states]
    return [trees.named_leaves(v.params) | trees.named_leaves(v.frozen) for v in everything], lines


@pytest.fixture(scope="module")
def alternating(data):
    return run(rolora, data)


def test_rounds_take_turns_and_the_factor_whose_turn_it_is_not_stays_bit_for_bit_in_spite_of_decay(alternating):
    params, lines = alternating
    assert [line["learns_b"] for line in lines] == [1.0, 0.0, 1.0]
    for number, (moved, still) in enumerate(("ba", "ab", "ba")):
        before, after = params[number], params[number + 1]
        np.testing.assert_array_equal(before[f"first/lora/{still}"], after[f"first/lora/{still}"])
        assert np.abs(before[f"first/lora/{moved}"] - after[f"first/lora/{moved}"]).max() > 1e-3
        assert np.abs(before["head/kernel"] - after["head/kernel"]).max() > 1e-3


def test_a_round_of_b_is_ffa_lora(alternating, data):
    ffa, _ = run(lambda local: fedavg(local, model_state="fixed"), data, rounds=1, learn="b")
    for name, leaf in ffa[-1].items():
        # The same steps from the same start; keys differ, but nothing here is random.
        np.testing.assert_allclose(alternating[0][1][name], leaf, atol=1e-6, rtol=0)


def test_a_round_carries_one_factor_up_and_the_other_down(alternating):
    _, lines = alternating
    up = np.cumsum([0, B + HEAD, A + HEAD, B + HEAD]) * CLIENTS
    down = np.cumsum([0, A + HEAD, B + HEAD, A + HEAD]) * CLIENTS
    assert [line["uplink_bytes"] for line in lines] == up[1:].tolist()
    assert [line["downlink_bytes"] for line in lines] == down[1:].tolist()


def test_with_a_codec_that_rounds_clients_go_on_from_what_they_have(data):
    """B as sent in round 1 is what round 2 starts from: without steps its mean comes back, not the server's own B."""
    still = optax.sgd(0.0)
    params, lines = run(rolora, data, optimizer=still, codec=fp8(clip="max"))
    for leaves in params[1:]:  # B is zero and exact; A is on the grid from round 1 on
        np.testing.assert_array_equal(leaves["first/lora/b"], 0.0)
    scale = np.abs(params[0]["first/lora/a"]).max()
    assert 0 < np.abs(params[2]["first/lora/a"] - params[0]["first/lora/a"]).max() < scale * 2.0**-3
    assert lines[0]["uplink_bytes"] == CLIENTS * (B // 4 + 4 + HEAD - 3 * HIDDEN * CLASSES + 4)


RANKS = (1, 3, 2)


@pytest.fixture(scope="module")
def different(data):
    return run(lambda local: hetlora(local, RANKS), data, rounds=2)


def test_every_rank_is_counted_as_it_is_both_ways(different):
    pairs = sum(4 * rank * (K + HIDDEN) for rank in RANKS)
    for number, line in enumerate(different[1], 1):
        assert line["uplink_bytes"] == number * (pairs + CLIENTS * (HEAD + 1))
        assert line["downlink_bytes"] == number * (pairs + CLIENTS * HEAD)
    last = different[1][-1]
    assert [last[f"downlink_rank{rank}_bytes"] for rank in RANKS] == [2 * 4 * r * (K + HIDDEN) for r in RANKS]


def alone(data, client, start, rank):
    """(A, B, head kernel) of one client after three steps in full batches, with factors of its own rank."""
    rows = data.rows_at(np.arange(data.starts[client], data.starts[client] + data.sizes[client]))
    x, y = (data.columns[name][rows] for name in "xy")

    def loss(trained):
        a, b, out, bias = trained
        hidden = jnp.tanh(x @ start["first/kernel"] + (4.0 / R) * (x @ a) @ b + start["first/bias"])
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ out + bias, y).mean()

    @jax.jit
    def three_steps(trained):
        moments = MOMENTUM.init(trained)
        for _ in range(3):
            change, moments = MOMENTUM.update(jax.grad(loss)(trained), moments, trained)
            trained = optax.apply_updates(trained, change)
        return trained

    a, b = start["first/lora/a"][:, :rank], start["first/lora/b"][:rank]
    return three_steps((a, b, start["head/kernel"], start["head/bias"]))[:3]


def test_a_round_is_every_client_by_itself_at_its_rank_and_the_mean_by_the_size_of_what_it_learned(different, data):
    """Written out, with factors of the client's own shape, and weights by float64 products of full size."""
    start, end = different[0][0], different[0][1]
    found = [alone(data, i, start, rank) for i, rank in enumerate(RANKS)]
    padded = [
        (
            np.pad(np.asarray(a, np.float64), [(0, 0), (0, R - r)]),
            np.pad(np.asarray(b, np.float64), [(0, R - r), (0, 0)]),
        )
        for (a, b, _), r in zip(found, RANKS, strict=True)
    ]
    norms = np.asarray([np.linalg.norm(a @ b) for a, b in padded])
    w = norms / norms.sum()
    # Three steps in float32 on numbers of size 1.
    np.testing.assert_allclose(end["first/lora/a"], sum(p * a for p, (a, _) in zip(w, padded, strict=True)), atol=2e-5)
    np.testing.assert_allclose(end["first/lora/b"], sum(p * b for p, (_, b) in zip(w, padded, strict=True)), atol=2e-5)
    head = sum(n / 12 * np.asarray(h, np.float64) for n, (_, _, h) in zip(SIZES, found, strict=True))
    np.testing.assert_allclose(end["head/kernel"], head, atol=2e-5)
    assert np.ptp(w) > 0.05 and np.abs(w - np.asarray(SIZES) / 12).max() > 0.05


def test_clients_at_once_give_the_same_as_one_after_another(different, data):
    together, _ = run(lambda local: hetlora(local, RANKS), data, rounds=2, executor=vmap())
    for name, leaf in together[-1].items():
        # Sums over clients and rows in another order, twice.
        np.testing.assert_allclose(leaf, different[0][-1][name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("place", [0, 1])
def test_a_message_holds_the_blocks_of_its_rank_each_encoded_by_itself(place):
    codec = _by_rank(fp8(clip="max"), 2)
    a, b = jnp.ones((K, R)), jnp.arange(R * HIDDEN, dtype=jnp.float32).reshape(R, HIDDEN)
    blocks = tuple({"first": _lora_merge.Factors(a[:, i:j], b[i:j])} for i, j in ((0, 1), (1, R)))
    tree = {"params": {"bias": jnp.float32([0.3])}, "blocks": blocks, "place": jnp.uint8(place)}
    message, _ = codec.encode(jax.random.key(0), codec.init(tree), tree)
    sent = sum(size for size, there in trees.pieces(message).values() if int(there))
    one, two = (n * (K + HIDDEN) + 2 * 4 for n in (1, R - 1))  # a byte a value and two clips
    assert sent == 4 + 1 + one + two * place
    got = codec.decode(codec.init(tree), message)
    assert int(got["place"]) == place and got["place"].dtype == jnp.uint8
    np.testing.assert_array_equal(got["params"]["bias"], tree["params"]["bias"])
    first, second = (block["first"] for block in got["blocks"])
    np.testing.assert_allclose(first.b, b[:1], rtol=2.0**-3)
    if place:
        np.testing.assert_allclose(second.b, b[1:], rtol=2.0**-3)
    else:
        assert not np.any(second.a) and not np.any(second.b)


def test_equal_norms_at_the_largest_rank_are_the_plain_mean():
    a = jnp.stack([jnp.eye(K, R), 2 * jnp.eye(K, R)])
    b = jnp.stack([2 * jnp.eye(R, HIDDEN), jnp.eye(R, HIDDEN)])
    pair = _lora_merge.Factors(a, b)
    got = _lora_merge.mean(pair, _lora_merge.by_norm(pair, jnp.ones(2)))
    np.testing.assert_allclose(got.a, 1.5 * np.eye(K, R), rtol=1e-6)


@pytest.mark.parametrize("make", [rolora, lambda local: hetlora(local, (R,))])
def test_one_factor_alone_is_refused(make, data):
    with pytest.raises(UserError, match=r"needs the adapter lora with learn='both'"):
        run(make, data, learn="b")


def test_ranks_beyond_the_models_or_below_it_are_refused(data):
    with pytest.raises(UserError, match=r"largest rank is 4, but lora has rank 3 at 'first'"):
        run(lambda local: hetlora(local, (1, 4)), data)


@pytest.mark.parametrize("ranks", [(), (0, 2), (1.5,), (True,)])
def test_ranks_that_are_none_are_refused(ranks):
    with pytest.raises(ValueError, match="ranks must be whole numbers from 1"):
        hetlora(None, ranks)


def test_a_factor_that_is_none_is_refused():
    with pytest.raises(ValueError, match="first must be one of a, b; got 'c'"):
        rolora(None, "c")
