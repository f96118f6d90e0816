"""Quantization with static ranges: symmetric weights, and activations with power-of-two scales."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Weights(NamedTuple):
    """Symmetric codes of a weight, integers held in float32, and the scale of each column, [outputs]."""

    codes: jax.Array
    scale: jax.Array


def symmetric(w: Float[Array, "*inputs outputs"], bits: int) -> Weights:
    """Quantize `w` to codes from -(2^(bits - 1) - 1) to 2^(bits - 1) - 1, with one range for each column.

    The range reaches the column's largest absolute value; a column of zeros has scale 0.  Codes and scales
    are constants for differentiation.
    """
    # With barriers: else XLA would compile this differently within different programs, and bits would differ.
    w = jax.lax.stop_gradient(jax.lax.optimization_barrier(w.astype(jnp.float32)))
    largest = 2 ** (bits - 1) - 1
    scale = jax.lax.optimization_barrier(abs(w).max(axis=tuple(range(w.ndim - 1))) * jnp.float32(1 / largest))
    # XLA would multiply by the reciprocal of a broadcast divisor, which is sometimes one bit off.
    divisor = jax.lax.optimization_barrier(jnp.broadcast_to(jnp.where(scale > 0, scale, 1), w.shape))
    return Weights(jax.lax.optimization_barrier(jnp.round(w / divisor)), scale)


def fake_quant_static(
    x: Float[Array, "*shape"], exponent: Int[Array, ""], low: int, high: int
) -> Float[Array, "*shape"]:
    """`x` rounded to codes from `low` to `high` of scale 2^-exponent, half to even.

    The gradient is the identity, and 0 where codes are clipped.

    >>> fake_quant_static(jnp.array([0.3, 9.0]), jnp.int32(2), -8, 7).tolist()
    [0.25, 1.75]
    """
    codes = jnp.round(x * power_of_two(exponent))
    inside = (codes >= low) & (codes <= high)
    value = jnp.clip(codes, low, high) * power_of_two(-exponent)
    return straight_through(value, jnp.where(inside, x, 0))


def signed_range(bits: int) -> tuple[int, int]:
    """The smallest and the largest signed code of `bits` bits.

    >>> signed_range(8)
    (-128, 127)
    """
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def power_of_two(exponent: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """2^exponent in float32 for exponents from -126 to 127, exactly; XLA's exp2 can be one bit off."""
    return jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


@jax.custom_jvp
def straight_through(value: jax.Array, slope: jax.Array) -> jax.Array:
    """`value`, differentiated as `slope`."""
    return value


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return primals[0], tangents[1]
