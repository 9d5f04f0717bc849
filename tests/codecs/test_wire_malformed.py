"""Bytes that are not the message that was expected: each is refused with what is wrong, and nothing large is made."""

import random
import struct
import tracemalloc
import zlib

import jax
import ml_dtypes
import numpy as np
import pytest

from fedjax8.codecs import wire
from fedjax8.codecs.wire import HEADER_BYTES, WireError, pack, unpack
from fedjax8.types import Sections

MESSAGE = {"x": np.arange(4, dtype=np.float32)}
BITS = {"bool": 1, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4_e2m1fn": 4, "float6_e2m3fn": 6,
        "float6_e3m2fn": 6}  # fmt: skip


def same(a, b) -> bool:
    """Whether two messages have one structure and the same bytes."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        (x.shape, x.dtype, np.asarray(x).tobytes()) == (y.shape, y.dtype, np.asarray(y).tobytes())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def with_sections(present=0b101):
    """7 bytes of three parts, and a leaf of 2: of the parts those of `present` hold something."""
    parts = (np.array([1, 2], np.uint16), np.array([3, 4], np.uint8), {"x": np.array([-7], np.int8)})
    parts = tuple(part if present >> i & 1 else jax.tree.map(np.zeros_like, part) for i, part in enumerate(parts))
    return {"end": np.array([9, 9], np.uint8), "middle": Sections(np.array([present], np.uint8), parts)}


def sealed(header: bytes, body: bytes) -> bytes:
    """A header without its last field, the checksum, and a body, with a checksum that is right."""
    return header + struct.pack("<I", zlib.crc32(header + body)) + body


def with_body(message, body: bytes, flags=0, length=None) -> bytes:
    """A message like `message` whose body is replaced, in order otherwise."""
    header = bytearray(pack(message)[: HEADER_BYTES - 4])
    header[6:8] = struct.pack("<H", flags)
    header[16:24] = struct.pack("<Q", len(body) if length is None else length)
    return sealed(bytes(header), body)


def refused(data, reason, like=MESSAGE):
    with pytest.raises(WireError, match=reason):
        unpack(data, like)


def test_malformed_bytes_are_refused_with_what_is_wrong():
    good = pack(MESSAGE)
    refused(b"", "truncated: 0 bytes, where the header alone has 28")
    refused(good[:27], "truncated: 27 bytes")
    refused(good[:-1], "truncated: the header announces a body of 16 bytes, 15 follow")
    refused(good + b"\0", "trailing bytes: the header announces a body of 16 bytes, 17 follow")
    refused(b"fj9m" + good[4:], "not a message of fedjax8: it begins with b'fj9m'")
    refused(good[:4] + b"\x02\x00" + good[6:], "version 2 of the layout; this fedjax8 reads version 1")
    refused(good[:6] + b"\x02\x00" + good[8:], "unknown flags 0x2")
    refused(good[:-1] + bytes([good[-1] ^ 1]), "altered on the way: the checksum is")
    refused(good[:24] + bytes(4) + good[28:], "altered on the way: the checksum is .*, the header says 0x00000000")
    refused(with_body(MESSAGE, bytes(12)), "the body has 12 bytes; .* it should have 16")
    refused(with_body(MESSAGE, bytes(20)), "the body has 20 bytes; .* it should have 16")
    refused(with_body(MESSAGE, bytes(16), length=2**64 - 1), "announces a body of 18446744073709551615 bytes")


def test_malformed_sections_are_refused_with_what_is_wrong():
    message = with_sections()
    refused(with_body(message, b"\x09\x09\x08"), "Sections of 3 parts say that part 3 is sent", message)
    refused(with_body(message, b"\x09\x09\x80"), "Sections of 3 parts say that part 7 is sent", message)
    refused(with_body(message, b"\x09\x09\x02\x01"), "the body has 4 bytes; .* it should have 5", message)
    refused(with_body(message, b"\x09\x09\x00\x01"), "the body has 4 bytes; .* it should have 3", message)
    refused(with_body(message, b"\x09\x09"), "the body ends after 2 bytes, where it should say which", message)


def test_malformed_compression_is_refused_with_what_is_wrong():
    stream = zlib.compress(bytes(16))
    assert same(unpack(with_body(MESSAGE, stream, wire.ZLIB), MESSAGE), {"x": np.zeros(4, np.float32)})
    refused(with_body(MESSAGE, bytes(16), wire.ZLIB), "the compressed body is damaged")
    refused(with_body(MESSAGE, stream[:-1], wire.ZLIB), "truncated: the compressed body ends early")
    refused(with_body(MESSAGE, stream + b"ab", wire.ZLIB), "trailing bytes: 2 after the compressed body")
    refused(with_body(MESSAGE, zlib.compress(bytes(17)), wire.ZLIB), "expands to more than the 16 bytes")
    refused(with_body(MESSAGE, zlib.compress(bytes(15)), wire.ZLIB), "the body has 15 bytes; .* it should have 16")
    nothing = {"x": np.zeros(0)}
    refused(with_body(nothing, zlib.compress(b"1"), wire.ZLIB), "expands to more than the 0 bytes", nothing)


def test_hostile_bytes_make_nothing_large():
    gigabyte = {"x": jax.ShapeDtypeStruct((2**28,), np.float32), "y": jax.ShapeDtypeStruct((2,), np.uint8)}
    lengths = [with_body(MESSAGE, bytes(16), length=n) for n in (0, 17, 2**31, 2**40, 2**63, 2**64 - 1)]
    header = wire._HEADER.pack(b"fj8m", 1, 0, wire.fingerprint(gigabyte), 16)
    hostile = [(data, MESSAGE) for data in lengths] + [(sealed(header, bytes(16)), gigabyte)]
    bomb = zlib.compress(bytes(100_000_000), 9)
    hostile += [(with_body(MESSAGE, bomb, wire.ZLIB), MESSAGE)]
    large = 2**20  # a hundredth of the bomb's content, and less than JAX needs for nothing but its caches
    for data, like in hostile:
        tracemalloc.start()
        with pytest.raises(WireError):
            unpack(data, like)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < large + 2 * len(data)


@pytest.mark.parametrize("name", BITS)
def test_unused_bits_of_narrow_dtypes_are_not_sent_and_not_accepted(name):
    dtype, most = np.dtype(getattr(ml_dtypes, name, name)), 2 ** BITS[name] - 1
    like = {"x": jax.ShapeDtypeStruct((1,), dtype)}
    if name != "bool":
        assert pack({"x": np.array([0xFF], np.uint8).view(dtype)})[HEADER_BYTES:] == bytes([most])
    with pytest.raises(WireError, match=f"'x': byte {most + 1} is no {dtype}"):
        unpack(with_body({"x": np.zeros(1, dtype)}, bytes([most + 1])), like)


def mutate(rng, data: bytes, other: bytes) -> bytes:
    """`data` with one accident: flipped bits, a cut, bytes more, a stretch of itself or of `other`, another length."""
    kind, at, to = rng.randrange(6), rng.randrange(len(data)), rng.randrange(len(data))
    changed = bytearray(data)
    if kind == 0:
        for place in rng.choices(range(8 * len(data)), k=1 + at % 4):
            changed[place // 8] ^= 1 << place % 8
    elif kind == 1:
        return data[:at]
    elif kind == 2:
        changed[at:at] = rng.randbytes(1 + to % 8)
    elif kind == 3:
        changed[at : at + to % 9] = other[to : to + to % 9]
    elif kind == 4:
        changed[at : at + 1 + to % 5] = data[to : to + 1 + to % 5]
    else:
        length = (0, 1, len(data), 2**31, 2**32, 2**63, 2**64 - 1)[at % 7] ^ (1 << rng.randrange(64))
        changed[16:24] = struct.pack("<Q", length)
    return bytes(changed)


def test_a_hundred_thousand_accidents_are_noticed_or_change_nothing():
    rng, message, other = random.Random(1), with_sections(0b101), with_sections(0b011)
    originals = (pack(message), with_body(message, zlib.compress(pack(message)[HEADER_BYTES:]), wire.ZLIB))
    for data in originals:
        assert same(unpack(data, message), message)
    donors, noticed = (pack(other), *originals), 0
    for turn in range(100_000):
        data = originals[turn % 2]
        changed = mutate(rng, data, donors[turn % 3])
        try:
            got = unpack(changed, message)
        except WireError:
            noticed += 1
        else:
            assert same(got, message)
            assert changed == data
    assert noticed > 90_000


def test_five_thousand_forged_messages_with_a_right_checksum_are_refused_or_well_formed():
    rng, message = random.Random(2), with_sections(0b101)
    plain, short = pack(message), zlib.compress(pack(message)[HEADER_BYTES:])
    squeezed = with_body(message, short, wire.ZLIB)
    accepted = 0
    for turn in range(5_000):
        data = squeezed if turn % 4 == 3 else plain
        changed = mutate(rng, data, plain)
        header = bytearray(changed[: HEADER_BYTES - 4])
        body = changed[HEADER_BYTES:]
        if turn % 2:  # an attacker gets the header right too
            header = bytearray(data[:16] + struct.pack("<Q", len(body)))
        try:
            got = unpack(sealed(bytes(header), body), message)
        except WireError:
            continue
        accepted += 1
        assert jax.tree.structure(got) == jax.tree.structure(message)
        if not header[6]:  # one form for one message: what is accepted is what `pack` writes
            assert pack(got) == sealed(bytes(header), body)
    assert accepted > 500
