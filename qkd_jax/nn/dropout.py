"""Dropout (Srivastava et al. 2014) with cheap random numbers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LEVELS = 256


def dropout(key: jax.Array, x: Float[Array, "*shape"], rate: float) -> Float[Array, "*shape"]:
    """Set a share `rate` of the values of `x` to zero, and scale up the others to keep the mean.

    `rate` is at least 0, below 1, and rounded to a multiple of 1/256 below 1: each value takes one of the
    four bytes of a random word, because on CPUs drawing random numbers dominates the cost of a block.

    >>> dropout(jax.random.key(0), jnp.ones(3), 0.0).tolist()
    [1.0, 1.0, 1.0]
    """
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    words = jax.random.bits(key, (-(-x.size // 4),), jnp.uint32)
    drawn = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: x.size].reshape(x.shape)
    return jnp.where(drawn >= dropped, x * (_LEVELS / (_LEVELS - dropped)), 0)
