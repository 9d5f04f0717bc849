"""Messages as bytes: the simulator's count is their length, and whatever happened to them is noticed."""

import dataclasses
import importlib
import os
import struct
import subprocess
import sys
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import core
from flax.struct import dataclass, field
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax8 import trees
from fedjax8.codecs import wire
from fedjax8.codecs.wire import HEADER_BYTES, WireError, pack, unpack
from fedjax8.errors import UserError
from fedjax8.lookup import component_names
from fedjax8.types import Sections

PACKAGE = "fedjax8.codecs"
RNG = np.random.default_rng(0)
UPDATES = {
    "layer": {"kernel": jnp.asarray(RNG.standard_normal((7, 5)), jnp.float32), "bias": jnp.ones(3)},
    "a": jnp.asarray(RNG.standard_normal((4, 3)), jnp.float32),
}
CODECS = {
    f"{name}-{index}": getattr(importlib.import_module(f"{PACKAGE}.{name}"), name)(**settings)
    for name in component_names(PACKAGE)
    for index, settings in enumerate(importlib.import_module(f"{PACKAGE}.{name}").EXAMPLES)
}


class Pair(NamedTuple):
    """A node with names."""

    first: Any
    second: Any


@dataclass
class Named:
    """A node with a static field."""

    values: Any
    static: Any = field(pytree_node=False)


def same(a, b) -> bool:
    """Whether two messages have one structure and the same bytes."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        (x.shape, x.dtype, np.asarray(x).tobytes()) == (y.shape, y.dtype, np.asarray(y).tobytes())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def is_sections(node) -> bool:
    return isinstance(node, Sections)


def with_sections(present=0b101):
    """7 bytes of three parts, and a leaf of 2: of the parts those of `present` hold something."""
    parts = (np.array([1, 2], np.uint16), np.array([3, 4], np.uint8), {"x": np.array([-7], np.int8)})
    parts = tuple(part if present >> i & 1 else jax.tree.map(np.zeros_like, part) for i, part in enumerate(parts))
    return {"end": np.array([9, 9], np.uint8), "middle": Sections(np.array([present], np.uint8), parts)}


def slow_crc32(data: bytes) -> int:
    """CRC-32 of IEEE 802.3, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_a_tiny_message_is_the_bytes_one_writes_by_hand():
    message = {"a": jnp.array([1, -2], jnp.int16), "b": jnp.array(True)}
    header = (
        b"fj8m" b"\x01\x00" b"\x00\x00"
        # printf "dict<list('a','b')>(*,*)\n['a'] int16 (2,)\n['b'] bool ()" | b2sum -l 64
        b"\xf9\x99\x2a\xf1\xd3\x5a\xac\x00"
        b"\x05\x00\x00\x00\x00\x00\x00\x00"
    )  # fmt: skip
    body = b"\x01\x00\xfe\xff\x01"
    assert pack(message) == header + struct.pack("<I", slow_crc32(header + body)) + body
    assert HEADER_BYTES == 28


@pytest.mark.parametrize(
    "codec",
    [pytest.param(c, id=name, marks=[] if name.endswith("-0") else pytest.mark.slow) for name, c in CODECS.items()],
)
def test_every_codecs_message_comes_back_from_bytes_as_long_as_was_counted(codec):
    state = codec.init(UPDATES)
    message, _ = codec.encode(jax.random.key(0), state, UPDATES)
    like = jax.eval_shape(codec.encode, jax.random.key(0), state, UPDATES)[0]
    plain, short = pack(message), pack(message, compress="zlib")
    assert len(short) <= len(plain) == HEADER_BYTES + wire.size(message)
    for data in (plain, short):
        got = unpack(data, like)
        assert same(got, message)
    for a, b in zip(*map(jax.tree.leaves, (codec.decode(state, got), codec.decode(state, message))), strict=True):
        np.testing.assert_array_equal(a, b)
    whole = not any(isinstance(node, Sections) for node in jax.tree.leaves(message, is_leaf=is_sections))
    assert wire.size(message) == trees.num_bytes(message) if whole else wire.size(message) <= trees.num_bytes(message)


def test_the_module_is_not_taken_for_a_codec():
    assert "wire" not in component_names(PACKAGE)


DTYPES = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64",
    "complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "float8_e8m0fnu", "int4", "uint4", "int2", "uint2", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn",
]  # fmt: skip
BITS = {"bool": 1, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4_e2m1fn": 4, "float6_e2m3fn": 6,
        "float6_e3m2fn": 6}  # fmt: skip


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


@pytest.mark.parametrize("name", DTYPES)
def test_every_pattern_of_bits_of_every_dtype_survives(name):
    dtype = dtype_of(name)
    octets = np.arange(256, dtype=np.uint8)
    octets = octets[: 2 ** BITS.get(name, 8)] if dtype.itemsize == 1 else np.concatenate([octets, octets[::-1]])
    message = {"x": octets.view(dtype), "scalar": octets.view(dtype)[-1:].reshape(()), "none": np.zeros((0, 3), dtype)}
    data = pack(message)
    assert same(unpack(data, message), message)
    assert data[HEADER_BYTES:] == octets[-dtype.itemsize :].tobytes() + octets.tobytes()


def test_arrays_of_the_other_byte_order_and_of_strides_are_sent_in_the_one_order():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert pack(values.astype(">f4")) == pack(values) == pack(np.asfortranarray(values))


def test_jax_arrays_come_back_as_jax_arrays_and_numpys_as_numpys():
    message = {"x": jnp.ones(2), "y": jnp.ones(2, jnp.int4)}
    for like in (message, trees.shapes(message)):
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(unpack(pack(message), like)))
    on_host = jax.device_get(message)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(unpack(pack(message), on_host)))
    wide = {"x": np.arange(2**40, 2**40 + 2)}  # JAX has no 64 bits unless asked to
    assert same(unpack(pack(wide), {"x": jax.ShapeDtypeStruct((2,), np.int64)}), wide)


def test_what_was_unpacked_does_not_change_with_the_buffer_it_came_from():
    for array in (jnp.arange(256, dtype=jnp.float32), np.arange(256, dtype=np.float32)):
        buffer = bytearray(pack(array))
        got = unpack(memoryview(buffer), array)
        buffer[:] = bytes(len(buffer))
        assert same(got, array)


@pytest.mark.parametrize("present", range(8))
def test_only_the_parts_that_are_present_are_sent(present):
    message = with_sections(present)
    data = pack(message)
    sent = b"\x01\x00\x02\x00" * (present & 1) + b"\x03\x04" * (present >> 1 & 1) + b"\xf9" * (present >> 2 & 1)
    assert data[HEADER_BYTES:] == b"\x09\x09" + bytes([present]) + sent
    assert wire.size(message) == 3 + len(sent)
    assert same(unpack(data, trees.shapes(message)), jax.tree.map(jnp.asarray, message))


def test_sections_in_sections_are_left_out_with_the_part_they_stand_in():
    def nested(outer, inner):
        first, second = np.full(3, bool(outer & inner & 1), np.uint8), np.full(5, bool(outer & inner & 2), np.uint8)
        inner = Sections(np.array([inner], np.uint8), (first, second))
        return Sections(np.array([outer], np.uint8), (inner, np.full(7, outer >> 1, np.uint8)))

    for outer, inner, length in ((0, 0, 1), (1, 0, 2), (1, 1, 5), (1, 2, 7), (1, 3, 10), (2, 0, 8), (3, 1, 12)):
        message = nested(outer, inner)
        assert wire.size(message) == len(pack(message)) - HEADER_BYTES == length
        assert same(unpack(pack(message), message), message)


def test_nine_parts_need_two_bytes_to_say_which_are_sent():
    parts = tuple(np.array([i % 2 * 5], np.uint8) for i in range(9))
    message = Sections(np.array([0b10101010, 0], np.uint8), parts)
    assert pack(message)[HEADER_BYTES:] == b"\xaa\x00\x05\x05\x05\x05"
    assert same(unpack(pack(message), message), message)


def test_a_part_that_is_left_out_but_not_zero_is_not_lost_in_silence():
    message = with_sections(0b111)
    message["middle"] = message["middle"].replace(present=np.array([0b110], np.uint8))
    with pytest.raises(UserError, match="'middle/parts/0' is marked as not sent"):
        pack(message)


@pytest.mark.parametrize("present", [np.zeros(2, np.uint8), np.zeros(1, np.int8), np.uint8(0)])
def test_sections_whose_present_does_not_fit_their_parts_are_refused(present):
    with pytest.raises(UserError, match=r"Sections of 1 parts need present uint8 \[1\]; got"):
        wire.size(Sections(present, (np.zeros(3),)))


def leaves():
    """Arrays of any dtype and small shape."""

    def filled(dtype, shape, seed):
        octets = np.random.default_rng(seed).integers(0, 256, int(np.prod(shape)) * dtype_of(dtype).itemsize)
        octets = octets.astype(np.uint8) & np.uint8(2 ** BITS.get(dtype, 8) - 1)
        return octets.view(dtype_of(dtype)).reshape(shape)

    shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    return st.builds(filled, st.sampled_from(DTYPES), shapes, st.integers(0, 2**32))


def sections(nodes):
    def build(parts, bits):
        bits = bits & (1 << len(parts)) - 1
        packed = bits.to_bytes(-(-len(parts) // 8), "little")
        parts = [p if bits >> i & 1 else jax.tree.map(np.zeros_like, p) for i, p in enumerate(parts)]
        return Sections(np.frombuffer(packed, np.uint8), tuple(parts))

    return st.builds(build, st.lists(nodes, max_size=10), st.integers(0, 1023))


def messages():
    names = st.text(max_size=3)
    return st.recursive(
        leaves() | st.none(),
        lambda nodes: (
            st.lists(nodes, max_size=4)
            | st.lists(nodes, max_size=4).map(tuple)
            | st.dictionaries(names, nodes, max_size=4)
            | st.builds(Pair, nodes, nodes)
            | st.builds(Named, nodes, names)
            | sections(nodes)
        ),
        max_leaves=8,
    )


@settings(max_examples=80, deadline=None)
@given(messages(), st.sampled_from([None, "zlib"]))
def test_any_tree_comes_back(message, compress):
    data = pack(message, compress)
    assert same(unpack(data, message), message)
    assert (
        (len(data) <= HEADER_BYTES + wire.size(message)) if compress else len(data) == HEADER_BYTES + wire.size(message)
    )
    assert wire.size(message) <= trees.num_bytes(message)
    assert wire.entropy_bytes(message) <= wire.size(message) * (1 + 1e-12)  # rounding of the sum of 256 terms


@settings(max_examples=60, deadline=None)
@given(messages(), messages())
def test_two_messages_share_a_fingerprint_only_if_one_can_stand_for_the_other(a, b):
    def shape(tree):
        return [(jax.tree_util.keystr(p), x.shape, x.dtype) for p, x in jax.tree_util.tree_leaves_with_path(tree)]

    alike = jax.tree.structure(a) == jax.tree.structure(b) and shape(a) == shape(b)
    assert (wire.fingerprint(a) == wire.fingerprint(b)) == alike


def test_a_message_that_repeats_is_shorter_compressed_and_noise_is_sent_as_it_is():
    repeats, noise = {"x": np.zeros(1000, np.uint8)}, {"x": RNG.integers(0, 256, 1000, np.uint8)}
    assert len(pack(repeats, "zlib")) < HEADER_BYTES + 50
    assert pack(noise, "zlib") == pack(noise)
    with pytest.raises(UserError, match="compress must be None or 'zlib'; got 'lzma'"):
        pack(repeats, "lzma")


def test_entropy_is_that_of_the_bytes():
    def of(*values):
        return wire.entropy_bytes({"x": np.array(values, np.uint8)})

    assert of() == of(7, 7, 7) == 0
    assert of(0, 1) == 2 / 8  # a bit each
    assert of(*range(256)) == 256
    # 3 of 4 bytes alike: 4 (3/4 log2(4/3) + 1/4 log2(4)) bits
    np.testing.assert_allclose(of(5, 5, 5, 6), 4 * (0.75 * np.log2(4 / 3) + 0.5) / 8, rtol=1e-12)
    assert wire.entropy_bytes(np.array([0x0100], np.uint16)) == 2 / 8  # bytes 0 and 1
    assert wire.entropy_bytes(with_sections(0)) == pytest.approx(3 * (2 / 3 * np.log2(3 / 2) + np.log2(3) / 3) / 8)


MESSAGE = {"x": np.arange(4, dtype=np.float32)}
OTHERS = {
    "shape": {"x": np.zeros((2, 2), np.float32)},
    "dtype": {"x": np.zeros(4, np.int32)},
    "name": {"y": np.zeros(4, np.float32)},
    "structure": [np.zeros(4, np.float32)],
    "one leaf more, of no bytes": {"x": np.zeros(4, np.float32), "y": np.zeros(0, np.float32)},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_models_message_of_the_same_length_is_noticed(other):
    with pytest.raises(WireError, match="another model's or codec's message"):
        unpack(pack(other), MESSAGE)


def test_static_fields_tell_messages_apart():
    @dataclasses.dataclass(frozen=True)
    class Settings:
        bits: int

    statics = [
        None, 1, 1.5, True, "1", b"1", (1, 2), (1, (2,)), (2, 1), frozenset({1, 2}), Settings(3), Settings(4),
        np.dtype("int8"), jnp.int8, jax.tree.structure((1, 2)), jax.tree.structure((1, None)), len, max,
        jax.ShapeDtypeStruct((2,), np.int8), jax.ShapeDtypeStruct((3,), np.int8), types.MappingProxyType({"a": 1}),
    ]  # fmt: skip
    prints = {wire.fingerprint(Named(np.zeros(2), static)) for static in statics}
    assert len(prints) == len(statics)
    with pytest.raises(UserError, match="cannot be recognized in another process"):
        pack(Named(np.zeros(2), object()))


def test_the_fingerprint_is_the_same_in_another_process():
    code = (
        "import numpy as np\n"
        "from flax import core, struct\n"
        "from fedjax8.codecs import wire\n"
        "@struct.dataclass\n"
        "class Named:\n"
        "    values: object\n"
        "    static: object = struct.field(pytree_node=False)\n"
        "message = core.freeze({'x': Named(np.ones(2), (frozenset('uvwxyz'), len, np.dtype('int8')))})\n"
        "print(wire.fingerprint(message).hex())\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    message = core.freeze({"x": Named(np.ones(2), (frozenset("uvwxyz"), len, np.dtype("int8")))})
    assert done.stdout.strip() == wire.fingerprint(message).hex()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"k": jax.random.key(0)}, r"'k' is key<fry>: typed keys are not sent. Send jax.random.key_data\(key\)"),
        ({"n": 3}, "leaves are arrays; 'n' is 3"),
        ({"o": np.array([None])}, "'o' has dtype object"),
        ({"s": np.array(["ab"])}, "'s' has dtype <U2"),
        ({"r": np.zeros(2, [("a", "i4")])}, "'r' has dtype"),
        ({"m": np.zeros(2, "m8[s]")}, "'m' has dtype timedelta64"),
        ({"d": jax.ShapeDtypeStruct((2,), jnp.int8)}, "'d' has a shape but no values: encode the message first"),
    ],
)
def test_what_has_no_bytes_is_refused(message, reason):
    with pytest.raises(UserError, match=reason):
        pack(message)


def test_a_key_in_what_is_expected_and_data_that_is_text_are_refused():
    with pytest.raises(UserError, match="typed keys are not sent"):
        unpack(pack(MESSAGE), {"x": jax.random.key(0)})
    with pytest.raises(UserError, match="bytes are needed; got str"):
        unpack("text", MESSAGE)
