"""Matrix products on integer codes, which are exact in any order of summation."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.quant.fake_quant import fake_quant
from qkd_jax.quant.qtensor import QTensor, dequantize, quantize

MAX_DOT_BITS = 8
FLOAT32_EXACT = 2**24
"""Integers of smaller magnitude are exact in float32."""
INT32_EXACT = 2**31
"""Integers of smaller magnitude fit in int32."""


def qdot(
    x: Float[Array, "*batch inputs"] | QTensor,
    w: Float[Array, "inputs outputs"] | QTensor,
    *,
    x_bits: int = 8,
    w_bits: int = 8,
) -> Float[Array, "*batch outputs"]:
    """x̂ · Ŵ: the product of quantized operands, computed on their integer codes (2 to 8 bits).

    A float `x` is quantized to `x_bits` with one range per vector, a float `w` to `w_bits` with one range.
    A QTensor keeps its bits, and needs one range per vector (`x`), or one per tensor or column (`w`).
    With centred codes q' = q - 2^(bits - 1), scales s and offsets β' = β + 2^(bits - 1) s

        y_j = s_w s_x Σ_k q'_w[k,j] q'_x[k] + s_w β'_x Σ_k q'_w[k,j]
              + β'_w (s_x Σ_k q'_x[k] + K β'_x)

    Sums of products of codes are exact integers: in float32 while K · 2^(w_bits - 1) · 2^(x_bits - 1)
    < 2^24, beyond that in int32.  The gradient is that of the product of the recovered floats, with the
    identity through the rounding: dx = dy · Ŵᵀ, dW = x̂ᵀ · dy.

    Raises ValueError for bits above 8, for ranges along other axes, and if int32 would overflow.

    >>> x, w = jnp.array([0.0, 1.0, 3.0]), jnp.array([[0.0], [2.0], [3.0]])
    >>> qdot(x, w, x_bits=2, w_bits=2).tolist()
    [11.0]
    """
    x_q = x if isinstance(x, QTensor) else quantize(x, x_bits)
    w_q = w if isinstance(w, QTensor) else quantize(w, w_bits, axis=None)
    if x_q.scale.shape[-1:] not in ((), (1,)):
        raise ValueError(f"x: expected a range per vector (axis=-1), got scales {x_q.scale.shape}")
    if w_q.scale.ndim == 2 and w_q.scale.shape[0] != 1:
        raise ValueError(f"w: expected a range per tensor or column (axis=0), got scales {w_q.scale.shape}")
    x_hat = dequantize(x) if isinstance(x, QTensor) else fake_quant(x, x_bits)
    w_hat = dequantize(w) if isinstance(w, QTensor) else fake_quant(w, w_bits, axis=None)
    return product(x_hat, w_hat, centre(x_q, -1), centre(w_q, 0), (x_q.bits, w_q.bits))


class Operand(NamedTuple):
    """Centred codes and affine terms of one factor: value = scale · codes + offset.

    `codes` are integers in float32; `sums` are their sums along the contracted axis.
    """

    codes: jax.Array
    scale: jax.Array
    offset: jax.Array
    sums: jax.Array


def centre(q: QTensor, axis: int) -> Operand:
    """`q` with centred codes, a constant in differentiation; `axis` is the contracted axis."""
    half = 2 ** (q.bits - 1)
    codes = q.codes.astype(jnp.float32) - half
    operand = Operand(codes, q.scale, q.offset + half * q.scale, codes.sum(axis, keepdims=True))
    return jax.lax.stop_gradient(operand)


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def product(x_hat, w_hat, x: Operand, w: Operand, bits: tuple[int, int]):
    """The product of `qdot`: its value from the codes, its derivative from the recovered floats."""
    inputs, (x_bits, w_bits) = w.codes.shape[0], bits
    if max(bits) > MAX_DOT_BITS:
        raise ValueError(f"bits: expected at most {MAX_DOT_BITS}, got {max(bits)}; beyond it use fake_quant")
    largest = 2 ** (x_bits + w_bits - 2)  # product of two centred codes
    if inputs * largest >= INT32_EXACT:
        raise ValueError(
            f"inputs: expected fewer than {INT32_EXACT // largest} at {x_bits} and {w_bits} bits, "
            f"got {inputs}, whose products overflow int32; split them"
        )
    if inputs * largest < FLOAT32_EXACT:
        sums = jnp.matmul(x.codes, w.codes, precision=jax.lax.Precision.HIGHEST)
    else:
        sums = jnp.matmul(
            x.codes.astype(jnp.int8), w.codes.astype(jnp.int8), preferred_element_type=jnp.int32
        ).astype(jnp.float32)
    w_scale, w_offset, w_sums = (
        jnp.broadcast_to(term.reshape(-1), sums.shape) for term in (w.scale, w.offset, w.sums)
    )
    y = w_scale * (x.scale * sums + x.offset * w_sums) + w_offset * (x.scale * x.sums + inputs * x.offset)
    return y.astype(jnp.result_type(x_hat, w_hat))


@product.defjvp
def _product_jvp(bits, primals, tangents):
    # Linear in the tangents, so JAX can transpose it, and sums over devices where necessary.
    (x_hat, w_hat, x, w), (dx, dw, *_) = primals, tangents
    exact = jax.lax.Precision.HIGHEST
    slope = jnp.matmul(dx, w_hat, precision=exact) + jnp.matmul(x_hat, dw, precision=exact)
    y = product(x_hat, w_hat, x, w, bits)
    return y, slope.astype(y.dtype)
