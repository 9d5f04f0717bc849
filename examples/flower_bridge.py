"""fedjax8's codecs on Flower's clients: what the simulator counted is what a real network then carries.

`to_flower` and `from_flower` turn a tree into a list of one uint8 array, the packed message, and back. Flower sends
arrays of any dtype, so they fit wherever it takes a list of arrays, such as `NumPyClient.fit`; they need no Flower.

`packed_mod` and `packed_strategy` do it for a whole app, whose own code goes on seeing float32 arrays under their
names, also when it is written in PyTorch:

    like = {name: jax.ShapeDtypeStruct(x.shape, "float32") for name, x in arrays.items()}  # known to both sides
    codec = fedjax8.codecs.fp8(clip="max")

    app = ClientApp(mods=[packed_mod(like, uplink=codec, downlink=codec)])                 # client_app.py
    strategy = packed_strategy(like, uplink=codec, downlink=codec, fraction_train=0.5)     # server_app.py
    strategy.start(grid, initial_arrays=ArrayRecord(arrays), num_rounds=3)

`python examples/flower_bridge.py` prints the sizes of a small model's messages. Tried with Flower 1.42.
"""

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fedjax8 import codecs, trees
from fedjax8.codecs import wire
from fedjax8.errors import UserError
from fedjax8.types import Codec, Key, PyTree

ARRAYS, CONFIG, ROUND = "arrays", "config", "server-round"
"""Names that Flower's strategies give to what they send."""
STATE = "fedjax8-uplink"
"""Where a client's codec state lies in Flower's `Context.state`."""


def to_flower(tree: PyTree, codec: Codec, key: Key, state: PyTree = ()) -> tuple[list[np.ndarray], PyTree]:
    """A tree to what Flower sends: `([message], new codec state)`, the message uint8 `[HEADER_BYTES + size]`."""
    message, state = codec.encode(key, state, tree)
    return [np.frombuffer(wire.pack(message), np.uint8)], state


def from_flower(arrays: list[np.ndarray], like: PyTree, codec: Codec, state: PyTree = ()) -> PyTree:
    """The tree, float32, that `to_flower` made `arrays` of.

    Args:
      arrays: one uint8 array.
      like: a tree of the same structure, shapes and dtypes, or its `ShapeDtypeStruct`s.
      codec: the sender's.
      state: the sender's codec state before this message; `codec.init(like)` for codecs whose `decode` does not use it.

    Raises:
      WireError: if this is no such message, or not one of such a tree.
    """
    if len(arrays) != 1 or arrays[0].dtype != np.uint8 or arrays[0].ndim != 1:
        got = ", ".join(f"{x.dtype} {list(x.shape)}" for x in arrays)
        raise wire.WireError(f"a packed message is one array uint8 [bytes]; got {got or 'none'}")
    message, _ = jax.eval_shape(codec.encode, jax.random.key(0), state, like)
    return codec.decode(state, wire.unpack(np.ascontiguousarray(arrays[0]), message))


def packed_mod(like: Mapping[str, Any], uplink: Codec, downlink: Codec, seed: int = 0) -> Callable:
    """Flower mod that unpacks the arrays a client is sent and packs those it answers with.

    It belongs first in the list of mods, so that the others see float32. Rounding is drawn from seed, round and node.
    A codec's state (error feedback) is kept in the client's `Context.state`. Codecs whose `decode` needs the sender's
    state are not for this mod.

    Args:
      like: names of the arrays to their shapes, in the order of Flower's `ArrayRecord`; all float32.
      uplink, downlink: the codecs that `packed_strategy` is given.
      seed: of the uplink's rounding.

    Raises:
      UserError: if Flower is not installed.
    """
    app = _flower("app")
    uplink, downlink = _jitted(uplink), _jitted(downlink)

    def mod(message: Any, context: Any, call_next: Callable) -> Any:
        number = int(message.content[CONFIG][ROUND])
        arrays = message.content[ARRAYS].to_numpy_ndarrays()
        message.content[ARRAYS] = _record(app, from_flower(arrays, like, downlink, downlink.init(like)), like)
        reply = call_next(message, context)
        if reply.has_content() and ARRAYS in reply.content:
            state = uplink.init(like)
            if STATE in context.state:
                state = wire.unpack(context.state[STATE].to_numpy_ndarrays()[0], state)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), context.node_id & 0xFFFFFFFF)
            arrays, state = to_flower(_tree(reply.content[ARRAYS], like), uplink, key, state)
            reply.content[ARRAYS] = app.ArrayRecord(arrays)
            if jax.tree.leaves(state):
                context.state[STATE] = app.ArrayRecord([np.frombuffer(wire.pack(state), np.uint8)])
        return reply

    return mod


def packed_strategy(
    like: Mapping[str, Any], uplink: Codec, downlink: Codec, seed: int = 0, base: type | None = None, **settings: Any
) -> Any:
    """Flower strategy that sends packed arrays to clients with `packed_mod` and averages what they answer.

    The server's own arrays stay float32. A reply that is not a message of this model is left out and logged.

    Args:
      like, uplink, downlink: as given to `packed_mod`.
      seed: of the downlink's rounding.
      base: class of the strategy; `flwr.serverapp.strategy.FedAvg` if None.
      settings: its own.

    Raises:
      UserError: if Flower is not installed.
    """
    app, base = _flower("app"), base or _flower("serverapp.strategy").FedAvg
    uplink, downlink = _jitted(uplink), _jitted(downlink)

    class Packed(base):
        """The strategy with packed messages."""

        state = downlink.init(like)

        def _packed(self, arrays: Any, number: int) -> Any:
            key = jax.random.fold_in(jax.random.key(seed), number)
            sent, self.state = to_flower(_tree(arrays, like), downlink, key, self.state)
            return app.ArrayRecord(sent)

        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            return super().configure_train(server_round, self._packed(arrays, 2 * server_round), config, grid)

        def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            return super().configure_evaluate(server_round, self._packed(arrays, 2 * server_round + 1), config, grid)

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            usable = []
            for reply in replies:
                try:
                    if reply.has_content() and ARRAYS in reply.content:
                        arrays = reply.content[ARRAYS].to_numpy_ndarrays()
                        reply.content[ARRAYS] = _record(app, from_flower(arrays, like, uplink, uplink.init(like)), like)
                    usable.append(reply)
                except wire.WireError as error:
                    logging.warning("node %d is left out: %s", reply.metadata.src_node_id, error)
            return super().aggregate_train(server_round, usable)

    return Packed(**settings)


def _flower(module: str) -> Any:
    try:
        return importlib.import_module(f"flwr.{module}")
    except ImportError as error:
        raise UserError(f"this needs Flower ({error}): pip install flwr") from error


def _jitted(codec: Codec) -> Codec:
    return codec._replace(encode=jax.jit(codec.encode), decode=jax.jit(codec.decode))


def _tree(record: Any, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Flower's arrays by name, if they are those of `like`."""
    tree = {name: np.asarray(array.numpy(), np.float32) for name, array in record.items()}
    given, expected = ({name: tuple(x.shape) for name, x in part.items()} for part in (tree, like))
    if given != expected:
        raise UserError(f"the app's arrays are {given}; packed_mod and packed_strategy were told {expected}")
    return tree


def _record(app: Any, tree: Mapping[str, Any], like: Mapping[str, Any]) -> Any:
    """Arrays by name to Flower's record, in the order of `like`: trees of JAX are sorted by name."""
    return app.ArrayRecord({name: app.Array(np.asarray(tree[name])) for name in like})


def main() -> None:
    """Prints the bytes of one small model's messages, and how far what arrives is from what was sent."""
    rng = np.random.default_rng(0)
    shapes = {"dense_0/kernel": (64, 128), "dense_0/bias": (128,), "dense_1/kernel": (128, 10), "dense_1/bias": (10,)}
    tree = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, codec in {"none": codecs.none(), "fp8": codecs.fp8(clip="max")}.items():
        arrays, _ = to_flower(tree, codec, jax.random.key(0), codec.init(tree))
        got = from_flower(arrays, trees.shapes(tree), codec, codec.init(tree))
        error = max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (got, tree)), strict=True))
        print(f"{name:>5}: {arrays[0].nbytes:,} bytes, largest error {error:.2g}")


if __name__ == "__main__":
    main()
