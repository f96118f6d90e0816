"""Codes, scales and offsets: eq. 3 of Shi et al. 2019."""

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

    `codes`: unsigned in [0, 2^bits - 1], uint8 up to 8 bits and uint16 above; `scale` >= 0 and
    `offset`: floats that broadcast against `codes`; `bits`: static under jit.
    """

    codes: UInt[Array, "..."]
    scale: Float[Array, "..."]
    offset: Float[Array, "..."]
    bits: int


def quantize(x: Float[Array, "..."], bits: int, *, axis: int | tuple[int, ...] | None = -1) -> QTensor:
    """Eq. 3: the codes of `x` in `bits` bits (2 to 16), with a range for each slice along `axis`.

    `axis` names the axes that share a range: -1 (default) gives each vector along the last axis
    its own, None the whole tensor one, 0 each column of a matrix its own.  In a slice offset =
    min, scale = (max - min) / (2^bits - 1), code = round((x - offset) / scale), half to even.

    Computed in float32 (in float64 for float64), and scale and offset have that type.  A
    constant slice, or one whose range is too small for a normal float, has scale 0, codes 0 and
    offset = min.  A slice that holds NaN or an infinity, or whose range is over a quarter of the
    largest float, has scale and offset NaN: dequantizing it shows the fault instead of hiding it.

    Raises ValueError for other bits and TypeError for other than floats.
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
    # NaN is not less either; beyond a quarter of the largest float 1 / scale may be flushed to 0.
    finite = spread < jnp.finfo(x.dtype).max / 4
    scale = spread / levels
    scale = jnp.where(scale < jnp.finfo(x.dtype).tiny, 0, scale)
    codes = jnp.round((x - low) / jnp.where(finite & (scale > 0), scale, jnp.inf))
    codes = jnp.where(finite, codes, 0).astype(jnp.uint8 if bits <= 8 else jnp.uint16)
    return QTensor(codes, jnp.where(finite, scale, jnp.nan), jnp.where(finite, low, jnp.nan), bits)


def dequantize(q: QTensor) -> Float[Array, "..."]:
    """Eq. 3's recovered values, scale · code + offset, in the type of `scale`."""
    return q.scale * q.codes.astype(q.scale.dtype) + q.offset
