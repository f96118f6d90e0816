"""Quantization within a graph: forward is dequantize(quantize), backward the identity (eq. 4)."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from qkd_jax.quant.fake_quant import fake_quant
from qkd_jax.quant.qtensor import dequantize, quantize


def normal(seed=0, shape=(3, 4, 5), dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("axis", [None, -1, (0, 2)])
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_forward_is_dequantize_of_quantize_in_the_type_of_x(bits, axis, dtype):
    x = normal(dtype=dtype)
    y = fake_quant(x, bits, axis=axis)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, dequantize(quantize(x, bits, axis=axis)).astype(dtype))
    assert bits == 16 or (np.asarray(y) != np.asarray(x)).any()


def test_the_default_range_is_that_of_each_vector():
    x = normal() * jnp.array([1, 10, 100, 1000]).reshape(1, 4, 1)
    np.testing.assert_array_equal(fake_quant(x, 4), fake_quant(x, 4, axis=-1))
    np.testing.assert_array_equal(fake_quant(x, 4)[1, 2], fake_quant(x[1, 2], 4))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_32_bits_are_off(dtype):
    x = normal(dtype=dtype).at[0, 0].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf, 3e38, 1e-30], dtype))
    y, pullback = jax.vjp(lambda x: fake_quant(x, 32), x)
    for got in (y, pullback(x)[0]):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got.astype(jnp.float32), x.astype(jnp.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("bits", [2, 16])
def test_gradient_is_the_incoming_one(bits, axis, dtype):
    # All elements: minimum and maximum of each slice are among them, where a clip would cut.
    x = normal(dtype=dtype).at[0].set(0.5)  # constant slices too
    cotangent = normal(1, dtype=dtype)
    _, pullback = jax.vjp(lambda x: fake_quant(x, bits, axis=axis), x)
    np.testing.assert_array_equal(pullback(cotangent)[0], cotangent)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_bad_slice_is_nan_alone_and_its_gradient_still_the_identity(bad):
    x = normal(shape=(3, 4))
    y, pullback = jax.vjp(lambda x: fake_quant(x, 4), x.at[1, 2].set(bad))
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(y[::2], fake_quant(x, 4)[::2])
    np.testing.assert_array_equal(pullback(x)[0], x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_the_chain_gradient_has_the_same_values_and_is_the_identity_in_constant_slices(axis, dtype):
    x = normal(dtype=dtype).at[..., :2].set(0.5).at[0].set(0.5)
    y, pullback = jax.vjp(lambda x: fake_quant(x, 4, axis=axis, gradient="chain"), x)
    assert y.dtype == dtype
    y, expected = (each.astype(jnp.float32) for each in (y, fake_quant(x, 4, axis=axis)))
    np.testing.assert_allclose(y, expected, rtol=1e-2 if dtype == jnp.bfloat16 else 1e-6)
    if axis == -1:
        cotangent = normal(1, dtype=dtype)
        np.testing.assert_array_equal(pullback(cotangent)[0][0], cotangent[0])


def test_the_chain_gradient_gives_the_extremes_their_share_of_the_rounding_errors():
    x = normal(shape=(5, 9))
    towards = np.asarray(normal(1, (5, 9)))
    gradient = jax.grad(lambda x: jnp.sum(fake_quant(x, 3, gradient="chain") * towards))(x)
    expected = towards.astype(np.float64)
    for row, into, toward in zip(np.asarray(x, np.float64), expected, towards):
        exact = (row - row.min()) / (row.max() - row.min()) * 7
        share = np.sum(toward * (np.round(exact) - exact)) / 7
        into[row.argmax()] += share
        into[row.argmin()] -= share
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_transforms_give_the_same_values_and_gradient(transform):
    x, cotangent = normal(2, (4, 9)), normal(3, (4, 9))
    y, pullback = jax.vjp(transform(lambda x: fake_quant(x, 8)), x)
    np.testing.assert_allclose(y, fake_quant(x, 8), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(pullback(cotangent)[0], cotangent)


@pytest.mark.parametrize("bits", [-1, 0, 1, 17, 31, 33])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"expected 2 to 16, or 32 for off, got {bits}"):
        fake_quant(jnp.ones(3), bits)


def test_integers_are_refused(monkeypatch):
    # The library's own error, without the annotations that only tests check.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match="expected floats, got int32"):
        fake_quant(jnp.arange(3), 8)
