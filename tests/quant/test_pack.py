"""Codes to bytes and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qkd_jax.quant.pack import pack, unpack


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.integers(2, 8), hnp.arrays(np.uint8, st.integers(0, 40)))
def test_round_trip_and_size(bits, codes):
    codes &= 2**bits - 1
    data = pack(codes, bits)
    assert data.dtype == np.uint8 and data.shape == (-(-codes.size * bits // 8),)
    back = unpack(data, bits, codes.size)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_layout_is_lowest_bit_first(bits):
    # By arithmetic on one large integer: code i stands at bit i · bits, bytes run from the low end.
    codes = np.random.default_rng(bits).integers(0, 2**bits, 13)
    number = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    assert pack(codes, bits).tobytes() == number.to_bytes(-(-13 * bits // 8), "little")


def test_at_4_bits_the_first_code_is_the_low_half():
    assert pack(np.array([1, 2, 15]), 4).tolist() == [0x21, 0x0F]
    assert unpack(np.array([0x21, 0x0F], np.uint8), 4, 3).tolist() == [1, 2, 15]


def test_none_at_all():
    assert pack(np.zeros((0, 3), np.uint8), 4).shape == (0,)
    assert unpack(np.zeros(0, np.uint8), 4, 0).shape == (0,)


def test_a_matrix_is_packed_row_by_row():
    codes = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(pack(codes, 3), pack(codes.reshape(-1), 3))
    assert not np.array_equal(pack(codes, 3), pack(codes.T, 3))


@pytest.mark.parametrize("bits", [0, 1, 9, 16])
def test_other_bits_are_refused(bits):
    for call in (pack, lambda codes, bits: unpack(codes, bits, 1)):
        with pytest.raises(ValueError, match=f"bits: expected 2 to 8, got {bits}"):
            call(np.zeros(3, np.uint8), bits)


@pytest.mark.parametrize(("codes", "bits"), [([0, 16], 4), ([0, 4], 2), ([-1, 3], 4), ([0, 256], 8)])
def test_codes_outside_their_range_are_refused(codes, bits):
    with pytest.raises(ValueError, match=f"codes: expected 0 to {2**bits - 1}, got {codes[0]} to {codes[1]}"):
        pack(np.array(codes), bits)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_data_of_another_length_is_refused(size):
    with pytest.raises(ValueError, match=r"data: expected 2 bytes for 3 codes of 4 bits, got"):
        unpack(np.zeros(size, np.uint8), 4, 3)
