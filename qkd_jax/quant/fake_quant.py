"""Quantization within a training graph: eq. 3 forward, the identity backward (eq. 4)."""

from functools import partial

import jax
from jaxtyping import Array, Float

from qkd_jax.config.fields import OFF, check_bits
from qkd_jax.quant.qtensor import dequantize, quantize


def fake_quant(
    x: Float[Array, "*shape"], bits: int, *, axis: int | tuple[int, ...] | None = -1
) -> Float[Array, "*shape"]:
    """`x` rounded to 2^bits levels between its minimum and maximum along `axis`, in x's type.

    `bits` is 2 to 16, or 32 for off; `axis` is as in `quantize`, and so is what becomes of slices
    that are constant (they come back unchanged), not finite, or of a very small or large range.

    The gradient is the identity: the straight-through estimator of eq. 4, with α and β held
    constant.  (Nothing is clipped: min and max always touch the bounds, where a clip's gradient
    would be cut.)  Reverse mode only, as with any custom_vjp.  Raises ValueError for other bits.
    """
    return x if check_bits(bits) == OFF else _fake_quant(x, bits, axis)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _fake_quant(x, bits, axis):
    return dequantize(quantize(x, bits, axis=axis)).astype(x.dtype)


def _forward(x, bits, axis):
    return _fake_quant(x, bits, axis), None


def _backward(bits, axis, residuals, gradient):
    return (gradient,)


_fake_quant.defvjp(_forward, _backward)
