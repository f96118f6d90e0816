"""What teachers and students share."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Normalize(nn.Module):
    """(x - mean) / std per mel band; both are kept with the model, in the collection `norm`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mean = self.variable("norm", "mean", jnp.zeros, x.shape[-1])
        std = self.variable("norm", "std", jnp.ones, x.shape[-1])
        return (x - jnp.broadcast_to(mean.value, x.shape)) / jnp.broadcast_to(std.value, x.shape)
