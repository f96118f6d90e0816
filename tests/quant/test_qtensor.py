"""Codes, scales and offsets (eq. 3) against a float64 oracle, committed codes, and hostile ranges."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qkd_jax.quant.qtensor import QTensor, dequantize, quantize

GOLDEN = Path(__file__).parents[1] / "goldens" / "quantize.npz"
GOLDEN_BITS, GOLDEN_AXES = (2, 3, 4, 8, 12, 16), (None, 0, -1)
EPS = np.finfo(np.float32).eps


def oracle(x, bits, axis):
    """Eq. 3 in float64: codes, scale, offset, and where rounding can't change a code."""
    x = np.asarray(x).astype(np.float64)
    low = x.min(axis, keepdims=True)
    scale = (x.max(axis, keepdims=True) - low) / (2**bits - 1)
    position = (x - low) / scale
    clear = np.abs(position % 1 - 0.5) > 2**bits * 2.0**-21  # the error of a position in float32
    return np.rint(position), scale, low, clear


def vectors(seed=0, shape=(5, 7, 6)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write_golden():
    """Inputs whose positions are all clear of ties, and their codes by the float64 oracle."""
    for seed in range(10_000):
        x = vectors(seed, (5, 8))
        made = {(bits, axis): oracle(x, bits, axis) for bits in GOLDEN_BITS for axis in GOLDEN_AXES}
        if all(clear.all() for *_, clear in made.values()):
            break
    codes = {f"{bits} {axis}": made[bits, axis][0].astype(np.uint16) for bits, axis in made}
    np.savez_compressed(GOLDEN, x=x, **codes)


@pytest.mark.parametrize("axis", [None, 0, -1, 1, (0, 2), (-2, -1)])
@pytest.mark.parametrize("bits", range(2, 17))
def test_codes_are_those_of_a_float64_oracle(bits, axis):
    x = vectors(bits)
    q = quantize(jnp.asarray(x), bits, axis=axis)
    codes, scale, offset, clear = oracle(x, bits, axis)
    assert clear.mean() > 0.9
    assert q.codes.dtype == (jnp.uint8 if bits <= 8 else jnp.uint16)
    np.testing.assert_array_equal(np.asarray(q.codes)[clear], codes[clear])
    np.testing.assert_allclose(q.codes, codes, atol=1)
    np.testing.assert_array_equal(q.codes.min(axis), 0)
    np.testing.assert_array_equal(q.codes.max(axis), 2**bits - 1)
    assert q.scale.shape == scale.shape  # a wrong axis may broadcast
    np.testing.assert_allclose(q.scale, scale, rtol=4 * EPS)
    np.testing.assert_array_equal(q.offset, offset)


@pytest.mark.parametrize("axis", GOLDEN_AXES)
@pytest.mark.parametrize("bits", GOLDEN_BITS)
def test_golden_codes(bits, axis):
    """Made once by `write_golden`: python -c "import test_qtensor as t; t.write_golden()" in this folder."""
    golden = np.load(GOLDEN)
    q = quantize(jnp.asarray(golden["x"]), bits, axis=axis)
    np.testing.assert_array_equal(q.codes, golden[f"{bits} {axis}"])


@pytest.mark.parametrize("call", [quantize, jax.jit(quantize, static_argnums=1)])
def test_ties_go_to_even(call):
    q = call(jnp.array([0, 0.5, 1.5, 2.5, 3.5, 13.5, 14.5, 15]), 4)  # scale 1
    np.testing.assert_array_equal(q.codes, [0, 0, 2, 2, 4, 14, 14, 15])


ANY = hnp.arrays(np.float32, 7, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(ANY, st.integers(2, 16))
def test_recovered_values_are_within_half_a_step_and_stay(x, bits):
    q = quantize(jnp.asarray(x), bits)
    recovered = np.asarray(dequantize(q), np.float64)
    spread, largest = np.ptp(np.float64(x)), np.abs(x).max()
    assert np.abs(recovered - x).max() <= float(q.scale[0]) / 2 + 4 * EPS * (largest + spread)
    assert 0 <= int(q.codes.min()) <= int(q.codes.max()) <= 2**bits - 1
    again = np.asarray(dequantize(quantize(jnp.asarray(recovered, jnp.float32), bits)), np.float64)
    assert np.abs(again - recovered).max() <= 1e-6 * spread + 4 * EPS * largest


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("bits", [4, 8, 12])
def test_half_precision_is_quantized_in_float32(bits, dtype):
    x = jnp.asarray(vectors(), dtype)
    q = quantize(x, bits)
    codes, scale, _, clear = oracle(x, bits, -1)
    assert q.scale.dtype == q.offset.dtype == dequantize(q).dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(q.codes)[clear], codes[clear])
    np.testing.assert_allclose(q.scale, scale, rtol=4 * EPS)


def test_the_whole_range_of_float16_does_not_overflow():
    x = jnp.array([-65504, 0, 65504], jnp.float16)
    np.testing.assert_allclose(dequantize(quantize(x, 16)), x, atol=1.01)


def test_float64_is_quantized_in_float64():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(3, 50)) * 1e-9 + 1  # float32 would see one value
        q = quantize(jnp.asarray(x), 16)
        assert q.scale.dtype == q.offset.dtype == jnp.float64
        np.testing.assert_allclose(dequantize(q), x, rtol=0, atol=1e-13)


def assert_constant(x, bits):
    q = quantize(x, bits)
    for part in (q.codes, q.scale):
        np.testing.assert_array_equal(part, 0)
    return dequantize(q)


@pytest.mark.parametrize("value", [0.0, -3.25, 0.1, 3e38, -3e38])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_a_constant_slice_has_scale_0_and_is_recovered(bits, size, value):
    x = jnp.full((2, size), value, jnp.float32)
    np.testing.assert_array_equal(assert_constant(x, bits), x)


@pytest.mark.parametrize("spread", [1e-36, 1e-38, 1e-40])
def test_a_range_too_small_for_a_normal_float_counts_as_constant(spread):
    np.testing.assert_array_equal(assert_constant(jnp.array([0, spread], jnp.float32), 16), 0)  # offset


def test_the_smallest_normal_scale_still_quantizes():
    x = jnp.array([0, 1, 2, 3], jnp.float32) * 2e-38
    np.testing.assert_array_equal(quantize(x, 2).codes, [0, 1, 2, 3])


@pytest.mark.parametrize("bits", [2, 7, 8, 16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_huge_range_is_right_or_nan_but_never_silently_wrong(dtype, bits):
    largest = float(jnp.finfo(dtype).max)
    for spread in (largest, 0.9 * largest, 0.7 * largest, 0.4 * largest):
        for low in (0, -spread):
            x = jnp.array([low, low + spread], dtype)
            recovered = np.float64(dequantize(quantize(x, bits)))
            if not np.isnan(recovered).all():
                np.testing.assert_allclose(recovered, np.float64(x), rtol=0, atol=1e-6 * spread)


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_large_values_are_no_overflow(bits):
    for x in ([0, 3e37], [-3e37, 3e37], [3.0e38, 3.1e38]):
        q = quantize(jnp.array(x, jnp.float32), bits)
        np.testing.assert_array_equal(q.codes, [0, 2**bits - 1])
        np.testing.assert_allclose(np.float64(dequantize(q)), x, rtol=1e-6)


BAD = [[np.nan, 1, 2, 3], [0, np.inf, 1, 2], [-np.inf, 0, 1, 2], [np.inf, -np.inf, 0, 1]]
BAD += [[np.inf] * 4, [np.nan] * 4, [-3e38, 3e38, 0, 1]]


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("bits", [3, 8, 16])
def test_a_bad_slice_is_nan_and_does_not_change_others(bits, bad):
    good = vectors(1, (3, 4))
    alone = quantize(jnp.asarray(good), bits)
    q = quantize(jnp.asarray(np.insert(good, 1, bad, axis=0), jnp.float32), bits)
    np.testing.assert_array_equal(q.codes[1], 0)
    for part in (q.scale, q.offset, dequantize(q)):
        assert np.isnan(part[1]).all()
    for got, expected in zip(jax.tree.leaves(q), jax.tree.leaves(alone)):
        np.testing.assert_array_equal(np.delete(got, 1, axis=0), expected)


@pytest.mark.parametrize("bits", [4, 16])
def test_transforms_give_the_same_codes(transform, bits):
    x = jnp.asarray(vectors(2, (4, 9)))
    plain, transformed = quantize(x, bits), transform(partial(quantize, bits=bits))(x)
    assert transformed.bits == bits
    clear = oracle(x, bits, -1)[-1]
    np.testing.assert_array_equal(np.asarray(transformed.codes)[clear], np.asarray(plain.codes)[clear])
    np.testing.assert_allclose(transformed.scale, plain.scale, rtol=2 * EPS)
    np.testing.assert_array_equal(transformed.offset, plain.offset)


def test_bits_are_static_and_three_arrays_are_leaves():
    x = jnp.asarray(vectors())
    seen = []

    @jax.jit
    def through(q: QTensor) -> QTensor:
        seen.append(q.bits)  # runs once per compilation
        return q

    for bits in (4, 8, 4):
        q = through(quantize(x, bits))
        assert type(q.bits) is int and q.bits == bits and len(jax.tree.leaves(q)) == 3
    assert seen == [4, 8]


@pytest.mark.parametrize("bits", [-1, 0, 1, 17, 32])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"expected 2 to 16, got {bits}"):
        quantize(jnp.ones(3), bits)


def test_other_than_floats_are_refused(monkeypatch):
    # The library's own error, without the annotations that only tests check.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for x in (jnp.arange(3), jnp.ones(3, bool)):
        with pytest.raises(TypeError, match=f"x: expected floats, got {x.dtype}"):
            quantize(x, 8)
