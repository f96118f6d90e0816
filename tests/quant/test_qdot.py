"""Products on codes: exact as integers, right as floats, straight-through in the gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.quant.qdot import qdot
from qkd_jax.quant.qtensor import QTensor, dequantize, quantize
from tests.oracles import data_parallel_gradient, jitted, mapped, remat, scanned

AXES = (0, None)
"""Rows of x, all of w."""


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) + 0.3, dtype)


# Compiled whole, which is faster here than operation by operation.
fast_qdot = jax.jit(qdot, static_argnames=("x_bits", "w_bits"))


@partial(jax.jit, static_argnums=(1, 2))
def hat(x, bits, axis=-1):
    return dequantize(quantize(x, bits, axis=axis))


def integers(codes, bits):
    """A QTensor whose values are its centred codes: scale 1, offset -2^(bits - 1)."""
    one = jnp.ones((1, 1))
    return QTensor(jnp.asarray(codes, jnp.uint8), one, -(2 ** (bits - 1)) * one, bits)


def exact(x, w, x_bits, w_bits):
    """The product of centred codes in int64."""
    return (np.int64(x) - 2 ** (x_bits - 1)) @ (np.int64(w) - 2 ** (w_bits - 1))


# Just below the bound of float32, K · 2^(w_bits - 1) · 2^(x_bits - 1) < 2^24, at it, and far above.
BOUNDS = [(8, 8), (5, 7), (8, 4), (2, 8), (4, 5)]
SIZES = [(*bits, K) for bits in BOUNDS for K in (2 ** (26 - sum(bits)) - 1, 2 ** (26 - sum(bits)))]
SIZES += [(8, 8, 2047), (8, 8, 5000), (8, 7, 4095), (4, 8, 40_000), (3, 2, 7), (2, 2, 1), (8, 8, 1)]


@pytest.mark.parametrize(("x_bits", "w_bits", "inputs"), SIZES)
def test_integers_are_those_of_int64(x_bits, w_bits, inputs):
    rng, x_top, w_top = np.random.default_rng(inputs), 2**x_bits - 1, 2**w_bits - 1
    ends = [(x, w) for x in (0, x_top) for w in (0, w_top)]
    operands = [(np.full((2, inputs), x), np.full((inputs, 3), w)) for x, w in ends]
    operands.append((rng.integers(0, x_top + 1, (2, inputs)), rng.integers(0, w_top + 1, (inputs, 3))))
    operands.append((rng.integers(0, 2, (2, inputs)), rng.integers(0, 2, (inputs, 3))))  # of equal signs
    for x, w in operands:
        y = fast_qdot(integers(x, x_bits), integers(w, w_bits))
        # In float32 from int64: beyond 2^24 the last conversion rounds, once.
        np.testing.assert_array_equal(y, exact(x, w, x_bits, w_bits).astype(np.float32))


def assert_product(y, x_hat, w_hat):
    x_hat, w_hat = np.float64(x_hat), np.float64(w_hat)
    assert (np.abs(y - x_hat @ w_hat) <= 1e-5 * (np.abs(x_hat) @ np.abs(w_hat))).all()


@pytest.mark.parametrize("inputs", [1, 1500])
@pytest.mark.parametrize(("x_bits", "w_bits"), [(8, 8), (4, 4), (8, 4), (2, 7)])
def test_forward_is_the_product_of_recovered_floats(x_bits, w_bits, inputs):
    x, w = normal(0, 3, inputs) * jnp.array([[1.0], [50.0], [1e-3]]), normal(1, inputs, 4)
    assert_product(fast_qdot(x, w, x_bits=x_bits, w_bits=w_bits), hat(x, x_bits), hat(w, w_bits, None))


@pytest.mark.parametrize("x_is_codes", [False, True])
@pytest.mark.parametrize("w_axis", ["float", None, 0])
def test_operands_may_be_floats_or_codes(x_is_codes, w_axis):
    # Columns of very different ranges: one range for all would lose the small ones.
    x, w = normal(0, 2, 3, 12), normal(1, 12, 4) * jnp.array([[1.0, 10.0, 1e-3, 5.0]])
    w_operand = w if w_axis == "float" else quantize(w, 6, axis=w_axis)
    y = fast_qdot(quantize(x, 5) if x_is_codes else x, w_operand, x_bits=5, w_bits=6)
    assert_product(y, hat(x, 5), hat(w, 6, None if w_axis == "float" else w_axis))


def test_the_bits_of_a_qtensor_override_the_argument_which_is_8_by_default():
    x, w = normal(0, 3, 12), normal(1, 12, 4)
    y = fast_qdot(quantize(x, 3), quantize(w, 4, axis=None), x_bits=8, w_bits=8)
    np.testing.assert_allclose(y, np.float64(hat(x, 3)) @ np.float64(hat(w, 4, None)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fast_qdot(x, w), fast_qdot(x, w, x_bits=8, w_bits=8))


@pytest.mark.parametrize("operand", ["x", "w"])
def test_ranges_along_the_wrong_axis_are_refused(operand):
    # With a square matrix, the shapes would fit by accident, and the result would be wrong.
    x, w = normal(0, 6, 6), normal(1, 6, 6)
    x, w = (quantize(x, 8, axis=0), w) if operand == "x" else (x, quantize(w, 8, axis=-1))
    with pytest.raises(ValueError, match="expected"):
        qdot(x, w)


def test_a_vector_and_an_empty_batch():
    x, w = normal(0, 2, 12), normal(1, 12, 4)
    np.testing.assert_allclose(fast_qdot(x[1], w), fast_qdot(x, w)[1], rtol=1e-6, atol=1e-6)
    assert fast_qdot(x[:0], w).shape == (0, 4)


@pytest.mark.parametrize("mate", [np.nan, np.inf, 1e30, 0.0])
def test_a_row_does_not_depend_on_the_others(mate):
    x, w = normal(0, 3, 12), normal(1, 12, 4)
    for other in (x.at[1].set(mate), x.at[1, 3].set(mate)):
        np.testing.assert_array_equal(fast_qdot(other, w)[::2], fast_qdot(x, w)[::2])


def gradients(f, x, w, dy):
    return jax.jit(lambda x, w, dy: jax.vjp(f, x, w)[1](dy))(x, w, dy)


@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 12)])
@pytest.mark.parametrize("bits", [4, 8])
def test_gradient_is_that_of_the_recovered_floats(bits, shape):
    x, w, dy = normal(0, *shape), normal(1, 12, 4), normal(2, *shape[:-1], 4)
    dx, dw = gradients(partial(qdot, x_bits=bits, w_bits=bits), x, w, dy)
    x_hat, w_hat, dy = np.float64(hat(x, bits)), np.float64(hat(w, bits, None)), np.float64(dy)
    np.testing.assert_allclose(dx, dy @ w_hat.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw, x_hat.reshape(-1, 12).T @ dy.reshape(-1, 4), rtol=1e-5, atol=1e-5)
    assert np.abs(dx - dy @ np.asarray(w).T).max() > 1e-4  # not that of the unquantized matrix


def test_gradient_reaches_scale_and_offset_of_codes():
    x, w, dy = normal(0, 3, 12), normal(1, 12, 4), normal(2, 3, 4)
    q = quantize(w, 4, axis=0)

    def y(scale, offset):
        return qdot(x, QTensor(q.codes, scale, offset, 4))

    d_scale, d_offset = jax.vjp(y, q.scale, q.offset)[1](dy)
    d_w = np.float64(hat(x, 8)).T @ np.float64(dy)
    np.testing.assert_allclose(d_scale[0], (d_w * np.asarray(q.codes)).sum(0), rtol=1e-5)
    np.testing.assert_allclose(d_offset[0], d_w.sum(0), rtol=1e-5)


def test_bfloat16_in_and_out():
    x, w = normal(0, 3, 40, dtype=jnp.bfloat16), normal(1, 40, 4, dtype=jnp.bfloat16)
    y = fast_qdot(x, w)
    dx, dw = gradients(qdot, x, w, y)
    assert y.dtype == dx.dtype == dw.dtype == jnp.bfloat16
    expected = np.float64(hat(x, 8)) @ np.float64(hat(w, 8, None))
    np.testing.assert_allclose(np.float64(y), expected, rtol=2**-7, atol=2**-7)
    np.testing.assert_allclose(np.float64(dx), expected @ np.float64(w).T, rtol=0.05, atol=2)


@pytest.mark.parametrize(("x_bits", "w_bits"), [(9, 8), (8, 9), (16, 4)])
def test_more_than_8_bits_are_refused(x_bits, w_bits):
    x, w = normal(0, 3, 12), normal(1, 12, 4)
    for call in (
        lambda: qdot(x, w, x_bits=x_bits, w_bits=w_bits),
        lambda: qdot(quantize(x, x_bits), quantize(w, w_bits, axis=None)),
    ):
        with pytest.raises(ValueError, match=f"expected at most 8, got {max(x_bits, w_bits)}"):
            call()


@pytest.mark.parametrize(("bits", "limit"), [((8, 8), 2**17), ((8, 7), 2**18), ((4, 4), 2**25)])
def test_int32_overflow_is_refused(bits, limit):
    def y(inputs):
        x, w = jnp.zeros((1, inputs), jnp.uint8), jnp.zeros((inputs, 1), jnp.uint8)
        return qdot(integers(x, bits[0]), integers(w, bits[1]))

    with pytest.raises(ValueError, match=f"expected fewer than {limit} .*got {limit}, .*overflow int32"):
        jax.eval_shape(lambda: y(limit))
    jax.eval_shape(lambda: y(limit - 1))


def test_the_largest_product_int32_holds():
    # Σ of 2^17 - 1 products of (-128)²: 2^31 - 2^14, the sums of codes -(2^24 - 128).
    inputs = 2**17 - 1
    y = fast_qdot(integers(np.zeros((1, inputs)), 8), integers(np.zeros((inputs, 1)), 8))
    assert int(y[0, 0]) == 2**31 - 2**14


def test_transforms_give_the_same_values_and_gradient(transform):
    x, w, dy = normal(0, 4, 12), normal(1, 12, 5), normal(2, 4, 5)
    np.testing.assert_allclose(transform(qdot, AXES)(x, w), qdot(x, w), rtol=1e-5, atol=1e-5)
    for got, plain in zip(gradients(transform(qdot, AXES), x, w, dy), gradients(qdot, x, w, dy)):
        np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transform", [jitted, mapped, scanned, remat])
@pytest.mark.parametrize("inputs", [12, 1500])
def test_transforms_give_the_same_integers(transform, inputs):
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (4, inputs)), rng.integers(0, 256, (inputs, 5))
    one = jnp.float32(1)

    def y(x, w):
        return qdot(QTensor(x, one, -128 * one, 8), QTensor(w, one, -128 * one, 8))

    got = transform(y, AXES)(jnp.asarray(x, jnp.uint8), jnp.asarray(w, jnp.uint8))
    np.testing.assert_array_equal(got, exact(x, w, 8, 8).astype(np.float32))


def test_vmap_over_matrices():
    x, w = normal(0, 4, 12), normal(1, 3, 12, 5)
    y = jax.jit(jax.vmap(qdot, in_axes=(None, 0)))(x, w)
    for index in range(3):
        np.testing.assert_allclose(y[index], fast_qdot(x, w[index]), rtol=1e-5, atol=1e-5)


def test_gradient_within_shard_map_sums_over_devices():
    # Data parallelism by hand: the matrix is replicated, its gradient a sum over the devices.
    x, w = normal(0, 4, 12), normal(1, 12, 5)

    def loss(w, x):
        return (qdot(x, w) ** 2).sum()

    got = data_parallel_gradient(loss, (None, 0))(w, x)
    np.testing.assert_allclose(got, jax.grad(loss)(w, x), rtol=1e-5, atol=1e-4)
