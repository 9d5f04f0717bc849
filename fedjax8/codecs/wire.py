"""Messages as bytes, to leave the simulator with: versioned, checked, without pickle, as long as the simulator counts.

Both sides know the codec and the tree's shapes, hence structure, shapes and dtypes of a message. So the body is the
bytes of its leaves in tree order and nothing else, and `len(pack(message)) - HEADER_BYTES` is the ledger's count.
The layout is this project's choice; every number is little-endian:

    offset  bytes  field
         0      4  b"fj8m"
         4      2  version, 1
         6      2  flags: bit 0 says that the body is one zlib stream
         8      8  fingerprint: BLAKE2b of 8 bytes over `description(message)` in UTF-8
        16      8  bytes of the body, as it follows
        24      4  CRC-32 of the 24 bytes before it and the body
        28         body

An element of the body is its bytes as NumPy has them: 1 for bool (0 or 1) and for everything of 8 bits or fewer (unused
high bits are 0), real part first for complex. A `types.Sections` node is `present`, then the parts whose bit is 1.

The checksum finds accidents, not attackers: authenticate the channel. Hostile bytes raise `WireError` all the same, or
give a message of the known shapes, and allocations are bounded by these shapes.
"""

import dataclasses
import functools
import hashlib
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8 import trees
from fedjax8.errors import UserError
from fedjax8.numerics.packing import packed_size
from fedjax8.types import PyTree, Sections

MAGIC = b"fj8m"
VERSION = 1
ZLIB = 1
"""Flag: the body is a zlib stream."""
_HEADER, _CHECKSUM = struct.Struct("<4sHH8sQ"), struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size
"""28: the bytes that `pack` adds to a message."""
_CHUNK = 1 << 20


class WireError(UserError):
    """Bytes that are not the message that was expected: says what is wrong with them."""


def pack(message: PyTree, compress: str | None = None) -> bytes:
    """The message as bytes: a header of `HEADER_BYTES`, then `size(message)` bytes, or fewer if compressed.

    Args:
      message: the message of a codec's `encode`, concrete arrays of JAX or NumPy.
      compress: None or `zlib`, which is used only where it makes the message shorter.

    Raises:
      UserError: for leaves that have no bytes of their own (typed PRNG keys, objects, Python numbers), static fields
        that another process could not recognize, or parts of `Sections` that are left out though they are not zero.
    """
    if compress not in (None, "zlib"):
        raise UserError(f"compress must be None or 'zlib'; got {compress!r}")
    body, flags = _body(message), 0
    if compress:
        short = zlib.compress(b"".join(part.data for part in body))
        if len(short) < sum(part.nbytes for part in body):
            body, flags = [np.frombuffer(short, np.uint8)], ZLIB
    length = sum(part.nbytes for part in body)
    header = _HEADER.pack(MAGIC, VERSION, flags, fingerprint(message), length)
    checksum = functools.reduce(lambda crc, part: zlib.crc32(part.data, crc), body, zlib.crc32(header))
    return b"".join([header, _CHECKSUM.pack(checksum), *(part.data for part in body)])


def unpack(data: bytes | bytearray | memoryview, like: PyTree) -> PyTree:
    """The message that `pack` made `data` of. Parts of `Sections` that were not sent are zeros.

    Args:
      data: all bytes of one message, and no others.
      like: a message of the same structure, shapes and dtypes, or their `jax.ShapeDtypeStruct`s:
        `jax.eval_shape(codec.encode, key, state, tree)[0]`.

    Returns:
      The message, of JAX arrays; of NumPy arrays where `like` has these or JAX has no such dtype (64 bits without
      `jax_enable_x64`). They do not share memory with `data`.

    Raises:
      WireError: if `data` is truncated, altered, of another version or another model, or not in the one form that
        `pack` writes. Nothing larger than the message that is expected is allocated.
      UserError: if `like` cannot be a message.
    """
    data = _view(data)
    flags, name = _check_header(data)
    expected = fingerprint(like)
    if name != expected:
        raise WireError(
            f"this is another model's or codec's message: its structure has fingerprint {name.hex()}, "
            f"expected is {expected.hex()}"
        )
    body = data[HEADER_BYTES:]
    if flags & ZLIB:
        body = memoryview(_inflate(body, most=trees.num_bytes(like)))

    def sent(present, offset):
        end = offset + present.shape[0]
        if end > len(body):
            raise WireError(f"the body ends after {len(body)} bytes, where it should say which parts are sent")
        return np.frombuffer(body[offset:end], np.uint8)

    offsets, end = _places(like, sent)
    if end != len(body):
        raise WireError(f"the body has {len(body)} bytes; with the parts it says are sent it should have {end}")
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    read = [_read(body, offset, leaf, path) for offset, (path, leaf) in zip(offsets, paths, strict=True)]
    to_device = [not _stays_numpy(leaf) for _, leaf in paths]
    placed = iter(jax.device_put([x for x, there in zip(read, to_device, strict=True) if there]))
    leaves = [next(placed) if there else x for x, there in zip(read, to_device, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def size(message: PyTree) -> int:
    """Bytes of the message's body: those of all leaves (`trees.num_bytes`) but the parts that are left out.

    A Python integer, read on the host. Raises UserError as `pack` does for a malformed `Sections`.
    """
    return _places(message, lambda present, offset: np.asarray(present))[1]


def entropy_bytes(message: PyTree) -> float:
    """Bytes an ideal coder of single bytes would need for the body: -sum_b n_b log2(n_b / n) / 8 over byte values b.

    The order-0 entropy: what Huffman or arithmetic coding can reach without looking at neighbors, its table not
    counted. A report beside `size`, not a size.
    """
    counts = np.zeros(256, np.int64)
    for part in _body(message):
        octets = part.view(np.uint8)
        for start in range(0, octets.size, _CHUNK):
            counts += np.bincount(octets[start : start + _CHUNK], minlength=256)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8) + 0.0  # + 0.0: not -0.0


def fingerprint(like: PyTree) -> bytes:
    """8 bytes that two messages share if they have the same structure, static fields, paths, shapes and dtypes."""
    return hashlib.blake2b(description(like).encode(), digest_size=8).digest()


def description(like: PyTree) -> str:
    """The text whose hash is the fingerprint, the same in every process: the structure with the static fields of its
    nodes, then a line `path dtype shape` for each leaf.

    Example:
      >>> description({"a": jnp.zeros((2, 3), jnp.int8)})
      "dict<list('a')>(*)\\n['a'] int8 (2, 3)"
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    lines = [f"{jax.tree_util.keystr(path)} {_dtype(path, leaf).name} {tuple(leaf.shape)}" for path, leaf in leaves]
    return "\n".join([_structure(structure), *lines])


def _structure(structure: Any) -> str:
    """`*` for a leaf, `class<static fields>(children)` for a node."""
    node = structure.node_data()
    if node is None:
        return "*"
    kind, static = node
    return f"{kind.__qualname__}<{_static(static)}>({','.join(map(_structure, structure.children()))})"


def _static(value: Any) -> str:
    """A static field as text that does not depend on the process: no addresses, no order of hashes."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, jax.tree_util.PyTreeDef):
        return _structure(value)
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"{value.dtype} {value.shape}"
    kind = type(value).__qualname__
    if isinstance(value, Mapping):
        return f"{kind}({','.join(sorted(f'{_static(k)}:{_static(v)}' for k, v in value.items()))})"
    if isinstance(value, set | frozenset):
        return f"{kind}({','.join(sorted(map(_static, value)))})"
    if isinstance(value, tuple | list):
        return f"{kind}({','.join(map(_static, value))})"
    if hasattr(value, "__qualname__"):  # a class or a function
        return f"{value.__module__}.{value.__qualname__}"
    if dataclasses.is_dataclass(value):
        return f"{kind}({','.join(_static(getattr(value, f.name)) for f in dataclasses.fields(value))})"
    raise UserError(f"a message's static field {value!r} cannot be recognized in another process: use plain values")


def _dtype(path: tuple, leaf: Any) -> np.dtype:
    """A leaf's dtype, if its elements are bytes that mean the same everywhere."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not hasattr(leaf, "shape"):
        raise UserError(f"a message's leaves are arrays; {trees.path_name(path)!r} is {leaf!r}")
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        raise UserError(
            f"{trees.path_name(path)!r} is {dtype}: typed keys are not sent. Send jax.random.key_data(key), or a seed"
        )
    dtype = np.dtype(dtype)
    if dtype.hasobject or dtype.kind in "SUMm" or dtype.fields is not None or _word(dtype) not in (1, 2, 4, 8):
        raise UserError(f"{trees.path_name(path)!r} has dtype {dtype}: only numbers of up to 64 bits are sent")
    return dtype


def _word(dtype: np.dtype) -> int:
    """Bytes of one real number of that dtype: within them the order is little-endian."""
    return dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize


@functools.cache
def _largest_byte(dtype: np.dtype) -> int:
    """Largest value of a byte that holds one element, for dtypes of one byte."""
    if dtype == np.bool_:
        return 1
    info = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    return 2 ** info(dtype).bits - 1


def _is_sections(node: Any) -> bool:
    return isinstance(node, Sections)


def _places(tree: PyTree, sent: Callable, offset: int = 0) -> tuple[list[int | None], int]:
    """Where in the body each leaf begins, in tree order, None for those left out; and where the body ends.

    `sent(present, offset)` gives the bytes of a `Sections.present`, NumPy uint8. Reads nothing else.
    """
    places: list[int | None] = []
    for node in jax.tree.leaves(tree, is_leaf=_is_sections):
        if not _is_sections(node):
            places.append(offset)
            offset += trees.num_bytes(node)
            continue
        count = len(node.parts)
        if node.present.shape != (packed_size(count, 1),) or node.present.dtype != np.uint8:
            raise UserError(
                f"Sections of {count} parts need present uint8 [{packed_size(count, 1)}]; "
                f"got {node.present.dtype} {list(node.present.shape)}"
            )
        bits = np.unpackbits(sent(node.present, offset), bitorder="little")
        if bits[count:].any():
            raise WireError(f"Sections of {count} parts say that part {count + int(bits[count:].argmax())} is sent")
        places.append(offset)
        offset += node.present.shape[0]
        for part, bit in zip(node.parts, bits, strict=False):
            inner, offset = _places(part, sent, offset) if bit else ([None] * len(jax.tree.leaves(part)), offset)
            places += inner
    return places, offset


def _body(message: PyTree) -> list[np.ndarray]:
    """The leaves that are sent, each as a flat array of little-endian unsigned integers."""
    paths, structure = jax.tree_util.tree_flatten_with_path(message)
    dtypes = [_dtype(path, leaf) for path, leaf in paths]
    for path, leaf in paths:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise UserError(f"{trees.path_name(path)!r} has a shape but no values: encode the message first")
    host = [np.asarray(leaf) for leaf in jax.device_get([leaf for _, leaf in paths])]
    places, _ = _places(jax.tree.unflatten(structure, host), lambda present, offset: present)
    body = []
    for leaf, dtype, place, (path, _) in zip(host, dtypes, places, paths, strict=True):
        if place is not None:
            body.append(_words(leaf, dtype))
        elif np.any(leaf != np.zeros((), leaf.dtype)):
            raise UserError(f"{trees.path_name(path)!r} is marked as not sent, so that it must hold zeros")
    return body


def _words(leaf: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A leaf's elements in row-major order as little-endian unsigned integers, unused high bits cleared."""
    word = _word(dtype)
    native = np.ascontiguousarray(leaf, dtype.newbyteorder("=")).reshape(-1).view(f"u{word}")
    if dtype.itemsize == 1 and dtype.kind != "b" and (largest := _largest_byte(dtype)) < 255:
        native = native & np.uint8(largest)
    return native.astype(f"<u{word}", copy=False)


def _read(body: memoryview, offset: int | None, like: Any, path: tuple) -> np.ndarray:
    """One leaf from the body, or its zeros: an array of its own."""
    dtype, length = np.dtype(like.dtype), trees.num_bytes(like)
    if offset is None or not length:
        return np.zeros(like.shape, dtype)
    word = _word(dtype)
    words = np.frombuffer(body[offset : offset + length], f"<u{word}").astype(f"u{word}")
    if dtype.itemsize == 1 and (largest := _largest_byte(dtype)) < 255 and words.max() > largest:
        raise WireError(f"{trees.path_name(path)!r}: byte {int(words.max())} is no {dtype}, at most {largest} is")
    return words.view(dtype.newbyteorder("=")).reshape(like.shape)


def _stays_numpy(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | np.generic) or jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype


def _view(data: Any) -> memoryview:
    try:
        return memoryview(data).cast("B")
    except TypeError as error:
        raise UserError(f"bytes are needed; got {type(data).__name__} ({error})") from error


def _check_header(data: memoryview) -> tuple[int, bytes]:
    """Flags and fingerprint of a message that is whole."""
    if len(data) < HEADER_BYTES:
        raise WireError(f"truncated: {len(data)} bytes, where the header alone has {HEADER_BYTES}")
    magic, version, flags, name, length = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise WireError(f"not a message of fedjax8: it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise WireError(f"version {version} of the layout; this fedjax8 reads version {VERSION}")
    if flags & ~ZLIB:
        raise WireError(f"unknown flags {flags:#x}; known is {ZLIB:#x} (zlib)")
    held = len(data) - HEADER_BYTES
    if held != length:
        what = "truncated" if held < length else "trailing bytes"
        raise WireError(f"{what}: the header announces a body of {length} bytes, {held} follow")
    (checksum,) = _CHECKSUM.unpack_from(data, _HEADER.size)
    found = zlib.crc32(data[HEADER_BYTES:], zlib.crc32(data[: _HEADER.size]))
    if found != checksum:
        raise WireError(f"altered on the way: the checksum is {found:#010x}, the header says {checksum:#010x}")
    return flags, name


def _inflate(body: memoryview, most: int) -> bytes:
    """The zlib stream's content, refused once it is longer than `most`."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise WireError(f"the compressed body is damaged: {error}") from error
    if len(content) > most:
        raise WireError(f"the compressed body expands to more than the {most} bytes of this message")
    if not stream.eof:
        raise WireError("truncated: the compressed body ends early")
    if stream.unused_data:
        raise WireError(f"trailing bytes: {len(stream.unused_data)} after the compressed body")
    return content
