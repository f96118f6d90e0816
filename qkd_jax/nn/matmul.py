"""Products with a matrix that is quantized once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.quant.fake_quant import Gradient, fake_quant
from qkd_jax.quant.qdot import MAX_DOT_BITS, centre, product
from qkd_jax.quant.qtensor import QTensor, quantize


def quantized_matmul(
    w: Float[Array, "inputs outputs"],
    *,
    x_bits: int,
    w_bits: int,
    blocks: int = 1,
    gradient: Gradient = "identity",
) -> Callable[[Float[Array, "*batch inputs"]], Float[Array, "*batch outputs"]]:
    """The function x -> Q(x) · Q(w), which quantizes `w` once, for use at many steps.

    x has one range per vector; `w` has one per block, with `blocks` equal blocks of columns (the gates of an
    LSTM).  Up to 8 bits, the product is computed on codes, as in `qdot`; with more bits (16, or 32 for off),
    on the recovered floats, in float32 precision.  `gradient` is that of `fake_quant`.

    >>> quantized_matmul(jnp.eye(3), x_bits=8, w_bits=8)(jnp.ones((5, 3))).shape
    (5, 3)
    """
    inputs, outputs = w.shape
    by_block = w.reshape(inputs, blocks, outputs // blocks)
    w_hat = recovered(w, w_bits, blocks=blocks, gradient=gradient)

    def x_hat(x: jax.Array) -> jax.Array:
        return fake_quant(x, x_bits, gradient=gradient)

    if max(x_bits, w_bits) > MAX_DOT_BITS:

        def on_floats(x: jax.Array) -> jax.Array:
            return jnp.matmul(x_hat(x), w_hat, precision=jax.lax.Precision.HIGHEST)

        return on_floats

    q = quantize(by_block, w_bits, axis=(0, 2))
    column = (1, blocks, outputs // blocks)
    scale, offset = (jnp.broadcast_to(value, column).reshape(1, outputs) for value in (q.scale, q.offset))
    operand = centre(QTensor(q.codes.reshape(w.shape), scale, offset, w_bits), 0)

    def on_codes(x: jax.Array) -> jax.Array:
        x_operand = centre(quantize(x, x_bits), -1)
        return product(x_hat(x), w_hat, x_operand, operand, (x_bits, w_bits))

    return on_codes


def recovered(
    w: Float[Array, "inputs outputs"], bits: int, *, blocks: int = 1, gradient: Gradient = "identity"
) -> Float[Array, "inputs outputs"]:
    """Q(w), with one range per block of columns."""
    inputs, outputs = w.shape
    by_block = w.reshape(inputs, blocks, outputs // blocks)
    return fake_quant(by_block, bits, axis=(0, 2), gradient=gradient).reshape(w.shape)
