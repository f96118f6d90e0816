"""The product with a matrix quantized once, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.nn.matmul import quantized_matmul
from tests.oracles import recovered


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) + 0.2, jnp.float32)


def columns(w, bits, blocks):
    parts = np.split(np.asarray(w), blocks, axis=1)
    return np.concatenate([recovered(part, bits) for part in parts], axis=1)


def apply(w, x, x_bits, w_bits, blocks):
    return quantized_matmul(w, x_bits=x_bits, w_bits=w_bits, blocks=blocks)(x)


WIDTHS = [(8, 8), (4, 8), (8, 2), (16, 16), (9, 8), (8, 16), (32, 4), (4, 32)]


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize(("x_bits", "w_bits"), WIDTHS)
def test_product_and_gradient_are_those_of_the_recovered_floats(x_bits, w_bits, blocks):
    # Blocks of very different ranges: one range for all of them would be far off.
    w = normal(0, 10, 8) * jnp.repeat(jnp.array([1.0, 20.0, 0.05, 5.0]), 2)[None]
    x, dy = normal(1, 2, 3, 10), normal(2, 2, 3, 8)

    @jax.jit
    def both(w, x, dy):
        y, pullback = jax.vjp(lambda w, x: apply(w, x, x_bits, w_bits, blocks), w, x)
        return y, *pullback(dy)

    y, dw, dx = both(w, x, dy)
    x_hat, w_hat, dy = recovered(x, x_bits, -1), columns(w, w_bits, blocks), np.float64(dy)
    np.testing.assert_allclose(y, x_hat @ w_hat, rtol=1e-5, atol=2e-4)
    np.testing.assert_allclose(dx, dy @ w_hat.T, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(dw, x_hat.reshape(-1, 10).T @ dy.reshape(-1, 8), rtol=1e-5, atol=1e-4)


def test_many_inputs_stay_exact():
    # More inputs than float32 sums exactly at 8 bits; scale 1 in both operands.
    rng = np.random.default_rng(0)
    x, w = rng.integers(-128, 128, (2, 1500)), rng.integers(-128, 128, (1500, 4))
    x[:, :2], w[:2] = [-128, 127], [[-128], [127]]  # each range is whole
    f = jax.jit(lambda w, x: apply(w, x, 8, 8, 2))
    y = f(jnp.asarray(w, jnp.float32), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, x @ w, rtol=1e-6)


def test_the_matrix_is_quantized_once():
    # Within a scan, only the product with the matrix remains.
    w, x = normal(0, 10, 8), normal(1, 5, 3, 10)
    f = quantized_matmul(w, x_bits=8, w_bits=8, blocks=4)
    whole = jax.make_jaxpr(lambda x: jax.lax.scan(lambda carry, row: (carry, f(row)), None, x))(x)
    body = next(equation for equation in whole.eqns if equation.primitive.name == "scan").params["jaxpr"]
    assert "round" in str(body)  # the vector's
    assert "[10,4,2]" not in str(body)  # the matrix in its blocks
