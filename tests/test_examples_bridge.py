"""examples/flower_bridge.py: Flower's clients and strategies with fedjax8's messages."""

import importlib.util
import io
import pathlib
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import codecs, trees
from fedjax8.codecs import wire
from fedjax8.errors import UserError
from fedjax8.types import Codec

FILE = pathlib.Path(__file__).parents[1] / "examples" / "flower_bridge.py"
RNG = np.random.default_rng(0)
ARRAYS = {"z.weight": RNG.standard_normal((5, 3)).astype(np.float32), "a.bias": np.arange(3, dtype=np.float32)}
LIKE = trees.shapes(ARRAYS)
LIKE = {name: LIKE[name] for name in ARRAYS}  # Flower's order, which trees of JAX do not keep
FP8 = codecs.fp8(clip="max")


@pytest.fixture(scope="module")
def bridge():
    spec = importlib.util.spec_from_file_location("flower_bridge", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def counting() -> Codec:
    """Adds to every value how many messages were sent before: a stand-in for a codec that remembers."""
    return Codec(
        init=lambda tree: jnp.zeros((), jnp.int32),
        encode=lambda key, state, tree: (jax.tree.map(lambda x: x + state, tree), state + 1),
        decode=lambda state, message: message,
        unbiased=False,
    )


@pytest.mark.parametrize("codec", [codecs.none(), FP8], ids=["none", "fp8"])
def test_a_tree_travels_as_one_array_of_as_many_bytes_as_the_simulator_counts(bridge, codec):
    key = jax.random.key(1)
    arrays, state = bridge.to_flower(ARRAYS, codec, key, codec.init(ARRAYS))
    message, _ = codec.encode(key, (), ARRAYS)
    assert [(x.dtype, x.shape) for x in arrays] == [(np.uint8, (wire.HEADER_BYTES + trees.num_bytes(message),))]
    assert state == ()
    saved = io.BytesIO()
    np.save(saved, arrays[0], allow_pickle=False)  # as Flower does
    got = bridge.from_flower([np.load(io.BytesIO(saved.getvalue()))], LIKE, codec)
    for name, x in codec.decode((), message).items():
        np.testing.assert_array_equal(got[name], x)


def test_what_is_not_such_a_message_is_refused(bridge):
    good, _ = bridge.to_flower(ARRAYS, FP8, jax.random.key(0))
    for arrays, reason in (
        ([], "one array uint8 .bytes.; got none"),
        (list(ARRAYS.values()), r"got float32 \[5, 3\], float32 \[3\]"),
        ([good[0][:-1]], "truncated"),
        (bridge.to_flower(ARRAYS, codecs.none(), jax.random.key(0))[0], "another model's or codec's message"),
    ):
        with pytest.raises(wire.WireError, match=reason):
            bridge.from_flower(arrays, LIKE, FP8)


def test_without_flower_the_error_says_what_to_install(bridge, monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    for build in (bridge.packed_mod, bridge.packed_strategy):
        with pytest.raises(UserError, match="pip install flwr"):
            build(LIKE, FP8, FP8)


def test_the_example_prints_the_sizes_of_a_model_of_9610_numbers(bridge, capsys):
    bridge.main()
    none, fp8 = capsys.readouterr().out.splitlines()
    assert none == f" none: {28 + 4 * 9610:,} bytes, largest error 0"
    assert f"{28 + 64 * 128 + 128 * 10 + 2 * 4 + 4 * (128 + 10):,} bytes" in fp8


class Array:
    """Stands in for Flower's."""

    def __init__(self, values):
        self.values = values

    def numpy(self):
        return self.values


class ArrayRecord(dict):
    """Stands in for Flower's: by name, or from a list by number."""

    def __init__(self, arrays):
        named = arrays if isinstance(arrays, dict) else {str(i): Array(x) for i, x in enumerate(arrays)}
        super().__init__(named)

    def to_numpy_ndarrays(self):
        return [array.numpy() for array in self.values()]


class Message:
    """Stands in for Flower's."""

    def __init__(self, content, node=0):
        self.content, self.metadata = content, types.SimpleNamespace(src_node_id=node)

    def has_content(self):
        return self.content is not None


class Base:
    """Stands in for a strategy: what it would send to one client, and what it was given to average."""

    def __init__(self, fraction):
        self.fraction = fraction

    def configure_train(self, server_round, arrays, config, grid):
        return [Message({"arrays": arrays, "config": {"server-round": server_round}})]

    configure_evaluate = configure_train

    def aggregate_train(self, server_round, replies):
        return [reply.content and {n: x.numpy() for n, x in reply.content["arrays"].items()} for reply in replies]


@pytest.fixture
def stand_ins(monkeypatch):
    app = types.ModuleType("flwr.app")
    app.Array, app.ArrayRecord = Array, ArrayRecord
    monkeypatch.setitem(sys.modules, "flwr", types.ModuleType("flwr"))
    monkeypatch.setitem(sys.modules, "flwr.app", app)
    return app


def record():
    return ArrayRecord({name: Array(x) for name, x in ARRAYS.items()})


def test_an_app_sees_float32_arrays_by_name_and_the_network_packed_ones(bridge, stand_ins):
    strategy = bridge.packed_strategy(LIKE, codecs.none(), FP8, base=Base, fraction=0.5)
    assert strategy.fraction == 0.5
    mod = bridge.packed_mod(LIKE, codecs.none(), FP8)
    context, seen = types.SimpleNamespace(node_id=2**63 + 5, state={}), []

    def client(message, context):
        arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
        seen.append(arrays)
        return Message({"arrays": ArrayRecord({name: Array(x + 1) for name, x in arrays.items()})})

    (sent,) = strategy.configure_train(3, record(), None, None)
    (packed,) = sent.content["arrays"].to_numpy_ndarrays()
    assert packed.nbytes == 28 + (15 + 4) + 3 * 4
    reply = mod(sent, context, client)
    (packed,) = reply.content["arrays"].to_numpy_ndarrays()
    assert packed.nbytes == 28 + 4 * 18
    assert list(seen[0]) == list(ARRAYS)
    np.testing.assert_array_equal(seen[0]["a.bias"], ARRAYS["a.bias"])
    # e4m3: 3 bits of mantissa, either neighbor: at most 2**-3 of the value, or of the smallest normal number
    step = np.maximum(np.abs(ARRAYS["z.weight"]), np.abs(ARRAYS["z.weight"]).max() * 2.0**-6 / 448) / 8
    assert np.all(np.abs(seen[0]["z.weight"] - ARRAYS["z.weight"]) <= step)
    (got,) = strategy.aggregate_train(3, [reply])
    assert list(got) == list(ARRAYS)
    for name in ARRAYS:
        np.testing.assert_array_equal(got[name], seen[0][name] + 1)


def test_a_client_that_remembers_does_so_between_rounds_and_the_server_too(bridge, stand_ins):
    mod = bridge.packed_mod(LIKE, counting(), counting())
    strategy = bridge.packed_strategy(LIKE, counting(), counting(), base=Base, fraction=1)
    context = types.SimpleNamespace(node_id=1, state={})
    for before in range(3):
        send = strategy.configure_evaluate if before == 1 else strategy.configure_train
        reply = mod(*send(before, record(), None, None), context, lambda message, context: Message(message.content))
        (got,) = strategy.aggregate_train(before, [reply])
        np.testing.assert_array_equal(got["a.bias"], ARRAYS["a.bias"] + 2 * before)


def test_a_reply_without_arrays_passes(bridge, stand_ins):
    context, none = types.SimpleNamespace(node_id=1, state={}), codecs.none()
    strategy, mod = bridge.packed_strategy(LIKE, none, none, base=Base, fraction=1), bridge.packed_mod(LIKE, none, none)
    for answer in (Message(None), Message({"metrics": 1})):
        (sent,) = strategy.configure_evaluate(1, record(), None, None)
        assert mod(sent, context, lambda *_, answer=answer: answer) is answer


def test_a_reply_that_is_no_message_is_left_out_and_logged(bridge, stand_ins, caplog):
    strategy = bridge.packed_strategy(LIKE, FP8, FP8, base=Base, fraction=1)
    good, _ = bridge.to_flower(ARRAYS, FP8, jax.random.key(0))
    bad = [good[0].copy()]
    bad[0][40] ^= 1
    replies = [Message({"arrays": ArrayRecord(arrays)}, node) for node, arrays in enumerate((good, bad, good))]
    assert len(strategy.aggregate_train(1, [*replies, Message(None)])) == 3
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["node 1 is left out"]


def test_arrays_of_another_model_than_was_told_are_refused(bridge, stand_ins):
    strategy = bridge.packed_strategy({"other": LIKE["a.bias"]}, FP8, FP8, base=Base, fraction=1)
    with pytest.raises(UserError, match=r"the app's arrays are .*z.weight.* were told {'other': \(3,\)}"):
        strategy.configure_train(1, record(), None, None)


@pytest.fixture
def flower():
    """Flower itself, its warnings aside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("flwr", reason="Flower is needed: pip install flwr")
        import flwr.app
        import flwr.clientapp
        import flwr.common.serde
        import flwr.serverapp
        import flwr.serverapp.strategy
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        yield flwr


def in_process_grid(flower, app, node_ids):
    """A `Grid` whose nodes are in this process; messages are serialized both ways as on a network."""
    serde, contexts = flower.common.serde, {}
    for node in node_ids:
        contexts[node] = flower.app.Context(1, node, {}, flower.app.RecordDict(), {})

    class Grid(flower.serverapp.Grid):
        sizes: list[int] = []  # noqa: RUF012

        def over_the_network(self, message):
            arrays = message.content.array_records.get("arrays") if message.has_content() else None
            if arrays is not None:
                self.sizes.append(sum(x.nbytes for x in arrays.to_numpy_ndarrays()))
            proto = serde.message_to_proto(message)
            return serde.message_from_proto(type(proto).FromString(proto.SerializeToString()))

        def send_and_receive(self, messages, *, timeout=None):
            received = [self.over_the_network(message) for message in messages]
            replies = [app(m, contexts[m.metadata.dst_node_id]) for m in received]
            return [self.over_the_network(reply) for reply in replies]

        def get_node_ids(self):
            return list(contexts)

        run = property(lambda self: None)
        set_run = create_message = push_messages = pull_messages = lambda self, *args, **kwargs: None

    return Grid()


@pytest.mark.parametrize("codec", [codecs.none(), FP8], ids=["none", "fp8"])
def test_flowers_own_averaging_works_on_packed_messages(bridge, flower, codec):
    app = flower.clientapp.ClientApp(mods=[bridge.packed_mod(LIKE, uplink=codec, downlink=codec)])
    record = lambda arrays: flower.app.ArrayRecord({n: flower.app.Array(np.asarray(x)) for n, x in arrays.items()})

    @app.train()
    def train(message, context):
        arrays = {
            name: array.numpy() + np.float32(context.node_id) for name, array in message.content["arrays"].items()
        }
        metrics = flower.app.MetricRecord({"num-examples": context.node_id})
        content = flower.app.RecordDict({"arrays": record(arrays), "metrics": metrics})
        return flower.app.Message(content, reply_to=message)

    grid = in_process_grid(flower, app, (1, 3))
    strategy = bridge.packed_strategy(LIKE, uplink=codec, downlink=codec, fraction_evaluate=0.0)
    result = strategy.start(grid, record(ARRAYS), num_rounds=2)
    got = {name: array.numpy() for name, array in result.arrays.items()}
    bytes_each = 28 + (4 * 18 if codec is not FP8 else 15 + 4 + 3 * 4)
    assert grid.sizes == 2 * 4 * [bytes_each]
    # node 1 adds 1 with weight 1, node 3 adds 3 with weight 3: 10 / 4 a round
    np.testing.assert_allclose(got["a.bias"], ARRAYS["a.bias"] + 5, rtol=1e-6)
    if codec is not FP8:
        np.testing.assert_allclose(got["z.weight"], ARRAYS["z.weight"] + 5, rtol=1e-6)
    else:  # four roundings, each by at most an eighth of the value, which stays below 3 + 2.5 + 3
        assert np.all(np.abs(got["z.weight"] - ARRAYS["z.weight"] - 5) <= 4 * 8.5 / 8)
