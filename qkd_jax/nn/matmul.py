"""Products with a quantized matrix, the matrix made ready once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.quant.fake_quant import fake_quant
from qkd_jax.quant.qdot import MAX_DOT_BITS, centre, product
from qkd_jax.quant.qtensor import QTensor, quantize


def quantized_matmul(
    w: Float[Array, "inputs outputs"], *, x_bits: int, w_bits: int, blocks: int = 1
) -> Callable[[Float[Array, "*batch inputs"]], Float[Array, "*batch outputs"]]:
    """The function x -> Q(x) · Q(w), for use at many steps: w is quantized here, once.

    Each vector of x has its own range; `w` has one for each of its `blocks` equal blocks of
    columns (the gates of an LSTM).  Up to 8 bits the product runs on codes, as `qdot` does;
    beyond (16 bits, or 32 for off) on the recovered floats, in float32 precision.
    """
    inputs, outputs = w.shape
    by_block = w.reshape(inputs, blocks, outputs // blocks)
    w_hat = recovered(w, w_bits, blocks=blocks)
    if max(x_bits, w_bits) > MAX_DOT_BITS:

        def on_floats(x: jax.Array) -> jax.Array:
            return jnp.matmul(fake_quant(x, x_bits), w_hat, precision=jax.lax.Precision.HIGHEST)

        return on_floats

    q = quantize(by_block, w_bits, axis=(0, 2))
    column = (1, blocks, outputs // blocks)
    scale, offset = (jnp.broadcast_to(value, column).reshape(1, outputs) for value in (q.scale, q.offset))
    operand = centre(QTensor(q.codes.reshape(w.shape), scale, offset, w_bits), 0)

    def on_codes(x: jax.Array) -> jax.Array:
        x_operand = centre(quantize(x, x_bits), -1)
        return product(fake_quant(x, x_bits), w_hat, x_operand, operand, (x_bits, w_bits))

    return on_codes


def recovered(
    w: Float[Array, "inputs outputs"], bits: int, *, blocks: int = 1
) -> Float[Array, "inputs outputs"]:
    """Q(w), with a range for each of its `blocks` equal blocks of columns."""
    inputs, outputs = w.shape
    return fake_quant(w.reshape(inputs, blocks, outputs // blocks), bits, axis=(0, 2)).reshape(w.shape)
