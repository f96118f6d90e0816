"""Quantized arrays: codes, scales and offsets by eq. 3 of Shi et al. 2019."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt

from qkd_jax.config.fields import MAX_BITS, MIN_BITS


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "scale", "offset"], meta_fields=["bits"])
@dataclasses.dataclass(frozen=True)
class QTensor:
    """A quantized array: value = scale · code + offset.

    `codes` are unsigned, in [0, 2^bits - 1]: uint8 up to 8 bits, uint16 above.  `scale` (at least 0) and
    `offset` are floats that broadcast against `codes`.  `bits` is static under jit.

    >>> QTensor(jnp.uint8([0, 3]), jnp.array([0.5]), jnp.array([-1.0]), bits=2).bits
    2
    """

    codes: UInt[Array, "..."]
    scale: Float[Array, "..."]
    offset: Float[Array, "..."]
    bits: int


def quantize(x: Float[Array, "..."], bits: int, *, axis: int | tuple[int, ...] | None = -1) -> QTensor:
    """Quantize `x` to `bits` bits (2 to 16) by eq. 3, with one range per slice along `axis`.

    `axis` names the axes that share a range: -1 (default) for one range per vector along the last axis,
    None for one for the whole tensor, 0 for one per column of a matrix.  In each slice offset = min,
    scale = (max - min) / (2^bits - 1), and code = round((x - offset) / scale), half to even.

    Computed in float32, or float64 for float64 inputs; scale and offset have that type.  A slice that is
    constant, or whose range is too small for a normal float, has scale 0, codes 0 and offset = min.  A
    slice with NaN or an infinity, or with a range above a quarter of the largest float, has scale and
    offset NaN, so that dequantizing shows the fault instead of hiding it.

    Raises ValueError for other bits and TypeError for types other than floats.

    >>> quantize(jnp.array([-1.0, 0.1, 2.0]), 2).codes.tolist()
    [0, 1, 3]
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits: expected {MIN_BITS} to {MAX_BITS}, got {bits}")
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise TypeError(f"x: expected floats, got {jnp.result_type(x)}")
    x = jnp.asarray(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    levels = 2**bits - 1
    low = x.min(axis=axis, keepdims=True)
    spread = x.max(axis=axis, keepdims=True) - low
    # False for NaN too.  For ranges above a quarter of the largest float, 1 / scale may be flushed to 0.
    finite = spread < jnp.finfo(x.dtype).max / 4
    scale = spread / levels
    scale = jnp.where(scale < jnp.finfo(x.dtype).tiny, 0, scale)
    codes = jnp.round((x - low) / jnp.where(finite & (scale > 0), scale, jnp.inf))
    codes = jnp.where(finite, codes, 0).astype(jnp.uint8 if bits <= 8 else jnp.uint16)
    return QTensor(codes, jnp.where(finite, scale, jnp.nan), jnp.where(finite, low, jnp.nan), bits)


def dequantize(q: QTensor) -> Float[Array, "..."]:
    """Recover the values scale · code + offset of eq. 3, in the type of `scale`.

    >>> dequantize(quantize(jnp.array([-1.0, 0.1, 2.0]), 2)).tolist()
    [-1.0, 0.0, 2.0]
    """
    return q.scale * q.codes.astype(q.scale.dtype) + q.offset
