"""Quantization in training: eq. 3 of Shi et al. 2019 forward, the identity backward (eq. 4)."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.config.fields import OFF, check_bits
from qkd_jax.quant.qtensor import dequantize, quantize

Gradient = Literal["identity", "chain"]


def fake_quant(
    x: Float[Array, "*shape"],
    bits: int,
    *,
    axis: int | tuple[int, ...] | None = -1,
    gradient: Gradient = "identity",
) -> Float[Array, "*shape"]:
    """`x` rounded to 2^bits levels between its minimum and maximum along `axis`, in the type of `x`.

    `bits` is 2 to 16, or 32 for off.  `axis`, and the treatment of slices that are constant (returned
    unchanged), not finite, or of a very small or large range, are those of `quantize`.

    The gradient is the identity: the straight-through estimator of eq. 4, with α and β held constant.
    Nothing is clipped, since minimum and maximum always touch the bounds, where a clip would cut their
    gradient.  Reverse mode only, as with any custom_vjp.  Raises ValueError for other bits.

    With `gradient="chain"`, the identity goes through the rounding alone.  Scale and offset come from
    minimum and maximum, so by the chain rule these two get, beside the identity, their share of the rounding
    errors of the whole slice.

    >>> fake_quant(jax.numpy.array([0.0, 0.4, 3.0]), 2).tolist()
    [0.0, 0.0, 3.0]
    """
    if check_bits(bits) == OFF:
        return x
    return _chained(x, bits, axis) if gradient == "chain" else _fake_quant(x, bits, axis)


def _chained(x, bits, axis):
    q = quantize(x, bits, axis=axis)
    scale = jnp.broadcast_to(jnp.where(q.scale > 0, q.scale, 1), x.shape)
    offset = jnp.broadcast_to(q.offset, x.shape)
    exact = (x.astype(scale.dtype) - offset) / scale
    through_rounding = exact - jax.lax.stop_gradient(exact)  # 0
    return (scale * (q.codes.astype(scale.dtype) + through_rounding) + offset).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _fake_quant(x, bits, axis):
    return dequantize(quantize(x, bits, axis=axis)).astype(x.dtype)


def _forward(x, bits, axis):
    return _fake_quant(x, bits, axis), None


def _backward(bits, axis, residuals, gradient):
    return (gradient,)


_fake_quant.defvjp(_forward, _backward)
