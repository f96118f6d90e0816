"""Dropout (Srivastava et al. 2014) whose random numbers cost little."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LEVELS = 256


def dropout(key: jax.Array, x: Float[Array, "*shape"], rate: float) -> Float[Array, "*shape"]:
    """`x` with zeros in place of a share of its values, the others scaled up so that means stay.

    The share is `rate`, from 0 to below 1, to the nearest 256th (of those below 1): a value needs a byte,
    four of which are cut out of each number drawn.  On a CPU drawing takes longer than all else in a block.
    """
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    words = jax.random.bits(key, (-(-x.size // 4),), jnp.uint32)
    drawn = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: x.size].reshape(x.shape)
    return jnp.where(drawn >= dropped, x * (_LEVELS / (_LEVELS - dropped)), 0)
