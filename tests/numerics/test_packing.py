"""Bit packing against NumPy's packbits."""

import jax
import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.numerics import pack_bits, packed_size, unpack_bits

BITS = (*range(1, 9), 13, 21, 32)


def oracle(codes, bits):
    """Bit k of every code in turn, lowest first, packed lowest first."""
    stream = (codes.astype(np.uint64)[:, None] >> np.arange(bits, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(stream.ravel().astype(np.uint8), bitorder="little")


def random_codes(count, bits, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint8 if bits <= 8 else np.uint32)


@pytest.mark.parametrize("bits", BITS)
def test_packing_fills_bytes_from_the_lowest_bit(bits):
    for count in (0, 1, 16, 203):
        codes = random_codes(count, bits, count)
        packed = np.asarray(pack_bits(codes, bits))
        assert packed.dtype == np.uint8
        assert packed.size == packed_size(count, bits) == -(-count * bits // 8)
        np.testing.assert_array_equal(packed, oracle(codes, bits))
        unpacked = np.asarray(unpack_bits(packed, bits, count))
        assert unpacked.dtype == codes.dtype
        np.testing.assert_array_equal(unpacked, codes)


def test_labels_of_three_bits_give_the_bytes_that_one_computes_by_hand():
    # 1, 2, 3 are 001, 010, 011 from the lowest bit up: 1 + 2 * 8 + 3 * 64 = 209, and a ninth bit that is 0
    assert np.asarray(pack_bits(np.array([1, 2, 3]), 3)).tobytes() == b"\xd1\x00"


def test_sizes_are_exact_for_numbers_beyond_32_bits():
    assert packed_size(3_000_000_001, 5) == 1_875_000_001


def test_packing_flattens_in_row_major_order_and_drops_higher_bits():
    codes = random_codes(30, 8).reshape(5, 6)
    np.testing.assert_array_equal(np.asarray(pack_bits(codes, 3)), oracle(codes.ravel() & np.uint8(7), 3))
    wide = random_codes(30, 32)
    np.testing.assert_array_equal(np.asarray(pack_bits(wide, 21)), oracle(wide & np.uint32((1 << 21) - 1), 21))


def test_other_integer_types_pack_alike():
    codes = random_codes(20, 3)
    np.testing.assert_array_equal(np.asarray(pack_bits(codes.astype(np.int32), 3)), oracle(codes, 3))


@pytest.mark.parametrize("bits", [1, 3, 8, 21])
def test_a_batch_packs_row_by_row(bits):
    codes = random_codes(3 * 21, bits).reshape(3, 21)
    packed = jax.jit(jax.vmap(lambda c: pack_bits(c, bits)))(codes)
    for row, bytes_ in zip(codes, np.asarray(packed), strict=True):
        np.testing.assert_array_equal(bytes_, oracle(row, bits))
    again = jax.vmap(lambda p: unpack_bits(p, bits, 21))(packed)
    np.testing.assert_array_equal(np.asarray(again), codes)


def test_impossible_widths_and_lengths_are_refused():
    for bits in (0, 33, -1):
        with pytest.raises(UserError, match=f"bits={bits} is out of range"):
            pack_bits(np.zeros(3, np.uint8), bits)
    with pytest.raises(UserError, match=r"10 codes of 3 bits fill 4 bytes; got an array of shape \(3,\)"):
        unpack_bits(np.zeros(3, np.uint8), 3, 10)
