"""Quantization by ranges known beforehand: symmetric weights, activations in power-of-two units."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Weights(NamedTuple):
    """Symmetric codes of a weight, integers held in float32, and the scale [outputs] of each column."""

    codes: jax.Array
    scale: jax.Array


def symmetric(w: Float[Array, "*inputs outputs"], bits: int) -> Weights:
    """`w` in codes of -(2^(bits - 1) - 1) to 2^(bits - 1) - 1, the largest of each column at an end of them.

    A column of zeros has scale 0.  Both are constants for differentiation.
    """
    # Barriers, so that every program that this becomes a part of computes the same bits.
    w = jax.lax.stop_gradient(jax.lax.optimization_barrier(w.astype(jnp.float32)))
    largest = 2 ** (bits - 1) - 1
    scale = jax.lax.optimization_barrier(abs(w).max(axis=tuple(range(w.ndim - 1))) * jnp.float32(1 / largest))
    # This one too: XLA multiplies by the reciprocal of what is broadcast, one bit off at times.
    divisor = jax.lax.optimization_barrier(jnp.broadcast_to(jnp.where(scale > 0, scale, 1), w.shape))
    return Weights(jax.lax.optimization_barrier(jnp.round(w / divisor)), scale)


def on_grid(
    x: Float[Array, "*shape"], exponent: Int[Array, ""], low: int, high: int
) -> Float[Array, "*shape"]:
    """`x` rounded to codes `low` to `high` in units of 2^-exponent, half to even.

    The gradient is the identity, cut where the codes are.
    """
    codes = jnp.round(x * power_of_two(exponent))
    inside = (codes >= low) & (codes <= high)
    value = jnp.clip(codes, low, high) * power_of_two(-exponent)
    return straight_through(value, jnp.where(inside, x, 0))


def signed(bits: int) -> tuple[int, int]:
    """The first and the last of the signed codes of `bits` bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def power_of_two(exponent: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """2^exponent in float32, exactly, for -126 to 127; XLA's exp2 may miss it by a bit."""
    return jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


@jax.custom_jvp
def straight_through(value: jax.Array, slope: jax.Array) -> jax.Array:
    """`value`, with the derivative of `slope`."""
    return value


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return primals[0], tangents[1]
