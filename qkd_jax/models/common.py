"""What teachers and students share."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.nn.matmul import quantized_matmul

_NAME = "normalize"
_EXACT = jax.lax.Precision.HIGHEST


class Logits(NamedTuple):
    """What a model says of clips and of each of their steps: logits, and what EEFD guides, if anything."""

    clip: Float[Array, "batch event"]
    steps: Float[Array, "batch step event"]
    embedding: Float[Array, "batch step size"] | None = None


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


def conv(x: jax.Array, channels: int, size: int, stride: int = 1) -> jax.Array:
    """Convolution of x [batch, time, mel, channel], `size` x `size` without bias, in x's type."""
    he = nn.initializers.he_normal()
    settings: dict[str, Any] = {"use_bias": False, "dtype": x.dtype, "kernel_init": he, "precision": _EXACT}
    if size == 1:  # the same product, faster on a CPU
        return nn.Dense(channels, **settings)(x[:, ::stride, ::stride])
    return nn.Conv(channels, (size, size), (stride, stride), **settings)(x)


def batch_norm(x: jax.Array, *, train: bool, initial_scale: float = 1.0, epsilon: float = 1e-5) -> jax.Array:
    """Batch-norm of x [..., channel] in x's type: by the batch's statistics, or the running ones."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        dtype=x.dtype,
        scale_init=nn.initializers.constant(initial_scale),
    )(x)


class Linear(nn.Module):
    """x · W + b, with W and each vector of x quantized to `bits`, or in float at 32."""

    outputs: int
    bits: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w = self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], self.outputs))
        b = self.param("b", nn.initializers.zeros, self.outputs)
        y = quantized_matmul(w, x_bits=self.bits, w_bits=self.bits)(x)
        return y + jnp.broadcast_to(b, y.shape)


def stem(features: jax.Array, channels: int, dtype: str, *, train: bool) -> jax.Array:
    """A teacher's head: features [batch, time, mel] to [batch, time / 4, mel / 4, channel], rounded up.

    `normalize`, and from there in `dtype`: 7x7/2 convolution, batch-norm, ReLU, 3x3/2 max-pool.
    """
    x = normalize(features)[..., None].astype(dtype)
    x = nn.relu(batch_norm(conv(x, channels, 7, 2), train=train))
    return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def pooled_logits(x: jax.Array, events: int) -> jax.Array:
    """A teacher's tail: mean of x [batch, time, mel, channel] over time and mel, one float32 linear layer."""
    return nn.Dense(events, precision=_EXACT)(x.astype(jnp.float32).mean(axis=(1, 2)))
