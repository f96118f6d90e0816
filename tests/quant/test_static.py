"""Symmetric weights and power-of-two scales against NumPy and exact fractions, and their gradients."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qkd_jax.quant.static import fake_quant_static, power_of_two, signed_range, straight_through, symmetric
from tests.trees import assert_equal

SHAPES = [(20, 6), (3, 3, 2, 5)]

fast_symmetric = jax.jit(symmetric, static_argnums=1)
fast_fake_quant = jax.jit(fake_quant_static, static_argnums=(2, 3))


def weights(shape, seed=0):
    """Columns of very different ranges, one of them all zeros."""
    w = np.random.default_rng(seed).normal(size=shape) * np.geomspace(1e-3, 30, shape[-1])
    w[..., 2] = 0
    return w.astype(np.float32)


def ties():
    """Columns whose scales at 4 bits are odd numbers, and whose quotients are ties if rounded only once."""
    return np.float32(np.outer([7, 1.5, -3.5, 5.5], np.arange(3, 203, 2)))


def by_numpy(w, bits):
    """Codes and scales, each operation rounded to float32."""
    largest = 2 ** (bits - 1) - 1
    columns = w.reshape(-1, w.shape[-1])
    scale = np.abs(columns).max(axis=0) * np.float32(1 / largest)
    return np.rint(w / np.where(scale > 0, scale, np.float32(1))), scale


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_are_the_nearest_and_reach_the_ends_of_their_range(shape, bits):
    w, largest = weights(shape, bits), 2 ** (bits - 1) - 1
    codes, scale = map(np.asarray, fast_symmetric(w, bits))
    assert codes.dtype == scale.dtype == np.float32
    assert codes.shape == w.shape
    for k, column in enumerate(np.moveaxis(w, -1, 0)):
        # In exact arithmetic.
        exact = Fraction(float(np.abs(column).max())) / largest
        assert float(scale[k]) == pytest.approx(float(exact), rel=2e-7)
        if exact:
            for value, code in zip(column.ravel(), codes[..., k].ravel()):
                assert abs(Fraction(float(value)) / exact - int(code)) <= Fraction(1, 2) + Fraction(1, 10**4)
            assert np.abs(codes[..., k]).max() == largest
    np.testing.assert_array_equal(codes[..., 2], 0)
    assert scale[2] == 0


# Equal bits, since training and export are different programs.


def within(w, bits):
    """`symmetric` inside another program."""

    def program(w):
        codes, scale = symmetric(w * 1.0, bits)
        return (codes * jnp.broadcast_to(scale, codes.shape)).sum(), codes, scale

    return jax.jit(program)(w)[1:]


def scan(w, bits):
    _, parts = jax.lax.scan(lambda carry, w: (carry, symmetric(w, bits)), None, w[None])
    return [part[0] for part in parts]


PROGRAMS = {
    "eager": lambda w, bits: symmetric(jnp.asarray(w), bits),
    "jit": fast_symmetric,
    "constant": lambda w, bits: jax.jit(lambda: symmetric(jnp.asarray(w), bits))(),
    "vmap": lambda w, bits: [part[1] for part in jax.vmap(lambda w: symmetric(w, bits))(jnp.stack([-w, w]))],
    "scan": scan,
    "within": within,
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_program_computes_the_same_bits(bits, program):
    w = ties() if bits == 4 else weights((60, 7), bits)
    assert_equal(tuple(PROGRAMS[program](w, bits)), by_numpy(w, bits))


NORMAL = st.floats(-1e6, 1e6, width=32).filter(lambda value: value == 0 or abs(value) > 1e-30)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(hnp.arrays(np.float32, (5, 3), elements=NORMAL), st.sampled_from([2, 3, 8]))
def test_codes_equal_those_of_float32_arithmetic(w, bits):
    codes, scale = map(np.asarray, fast_symmetric(w, bits))
    assert_equal((codes, scale), by_numpy(w, bits))
    assert np.abs(codes).max() <= 2 ** (bits - 1) - 1


def test_codes_and_scales_are_constants_for_differentiation():
    def loss(w):
        codes, scale = symmetric(w, 4)
        return (codes * jnp.broadcast_to(scale, codes.shape)).sum() + scale.sum()

    np.testing.assert_array_equal(jax.grad(loss)(jnp.asarray(weights((20, 6)))), 0)


def test_a_nan_weight_gives_a_nan_scale():
    codes, scale = symmetric(jnp.array([[1.0, jnp.nan], [2.0, 3.0]]), 8)
    np.testing.assert_array_equal(codes[:, 0], [64, 127])
    assert np.isnan(scale[1])
    assert scale[0] > 0


@pytest.mark.parametrize(("low", "high"), [(-128, 127), (0, 255), (-2, 1), (0, 3)], ids=str)
@pytest.mark.parametrize("exponent", [-8, -1, 0, 5, 15])
def test_values_are_rounded_half_to_even_and_clipped(exponent, low, high):
    # Ties, their neighbours, and values beyond the ends.
    ties = np.arange(2 * low - 6, 2 * high + 8) / 2
    codes = np.concatenate([ties, np.nextafter(np.float32(ties), np.float32(1e9)), [-1e6, 1e6]])
    x = np.float32(codes) * np.float32(2.0**-exponent)
    got = fast_fake_quant(x, jnp.int32(exponent), low, high)
    exact = [Fraction(float(value)) * Fraction(2) ** exponent for value in x]
    expected = [min(max(round(value), low), high) * 2.0**-exponent for value in exact]
    np.testing.assert_array_equal(got, np.float32(expected))


def test_the_gradient_is_the_identity_and_0_where_codes_are_clipped():
    # At a scale of 1/4 and codes from -4 to 3, -4.5 is a tie that rounds to -4, and 3.5 one that rounds to 4.
    codes = np.float32([-100, -4.51, -4.5, -4, -0.3, 0, 2.9, 3.49, 3.5, 100])
    inside = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
    cotangent = np.random.default_rng(0).normal(size=10).astype(np.float32)
    y, pullback = jax.vjp(lambda x: fake_quant_static(x, jnp.int32(2), -4, 3), jnp.asarray(codes / 4))
    np.testing.assert_array_equal(pullback(cotangent)[0], cotangent * inside)
    np.testing.assert_array_equal(y * 4, [-4, -4, -4, -4, 0, 0, 3, 3, 3, 3])
    assert np.isnan(fake_quant_static(jnp.array([jnp.nan, 1.0]), jnp.int32(3), -8, 7)[0])


def test_fake_quant_static_is_the_same_under_transforms(transform):
    x, cotangent = (np.random.default_rng(seed).normal(size=(4, 9)).astype(np.float32) for seed in (0, 1))
    (y, pullback), (plain, pulled) = (
        jax.vjp(f(lambda x: fake_quant_static(x, jnp.int32(6), -64, 63)), x) for f in (transform, jax.jit)
    )
    np.testing.assert_array_equal(y, plain)
    np.testing.assert_array_equal(pullback(cotangent)[0], pulled(cotangent)[0])


def test_powers_of_two_are_exact():
    exponents = np.arange(-126, 128, dtype=np.int32)
    expected = np.ldexp(np.float32(1), exponents)
    for f in (power_of_two, jax.jit(power_of_two)):
        got = f(jnp.asarray(exponents))
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, expected)
        assert float(f(jnp.int32(-3))) == math.ldexp(1, -3)


def test_signed_codes():
    assert [signed_range(bits) for bits in (2, 5, 8)] == [(-2, 1), (-16, 15), (-128, 127)]


def test_straight_through_has_the_derivative_of_its_second_argument():
    at = jnp.array([1.0, 2.0])
    value, moved = jax.jvp(lambda x: straight_through(x**3, 5 * x), (at,), (jnp.array([1.0, -2.0]),))
    np.testing.assert_array_equal(value, [1, 8])
    np.testing.assert_array_equal(moved, [5, -10])
    gradient = jax.grad(lambda x: straight_through(x**3, 5 * x).sum())(at)
    np.testing.assert_array_equal(gradient, [5, 5])
