"""What teachers and students share."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_NAME = "normalize"


class Normalize(nn.Module):
    """(x - mean) / std per mel band; both are kept with the model, in the collection `norm`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mean = self.variable("norm", "mean", jnp.zeros, x.shape[-1])
        std = self.variable("norm", "std", jnp.ones, x.shape[-1])
        return (x - jnp.broadcast_to(mean.value, x.shape)) / jnp.broadcast_to(std.value, x.shape)


def normalize(x: jax.Array) -> jax.Array:
    """`Normalize` under its own name, at the head of every model."""
    return Normalize(name=_NAME)(x)


def with_norm(variables: dict[str, Any], mean: jax.Array, std: jax.Array) -> dict[str, Any]:
    """`variables` of a model that begins with `normalize`, with `mean` and `std` [mels] in it."""
    return variables | {"norm": {_NAME: {"mean": mean, "std": std}}}
