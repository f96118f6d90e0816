"""Layers that several models share."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.config import QuantConfig
from qkd_jax.nn.matmul import quantized_matmul

GUIDES = ("embedding", "classes")
"""Layers that only guide training."""
_NAME = "normalize"
_EXACT = jax.lax.Precision.HIGHEST


class Logits(NamedTuple):
    """Logits of clips and steps, and if there are any, an embedding (`CRNN`), logits of classes (`LSTM`)."""

    clip: Float[Array, "batch event"]
    steps: Float[Array, "batch step event"]
    embedding: Float[Array, "batch step size"] | None = None
    classes: Float[Array, "batch class"] | None = None


class Normalize(nn.Module):
    """(x - mean) / std per mel band, with both in the model's collection `norm`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mean = self.variable("norm", "mean", jnp.zeros, x.shape[-1], jnp.float32)
        std = self.variable("norm", "std", jnp.ones, x.shape[-1], jnp.float32)
        return (x - jnp.broadcast_to(mean.value, x.shape)) / jnp.broadcast_to(std.value, x.shape)


def normalize(x: jax.Array) -> jax.Array:
    """Apply `Normalize`, the first layer of every model, under the name that `with_norm` expects."""
    return Normalize(name=_NAME)(x)


def with_norm(variables: dict[str, Any], mean: jax.Array, std: jax.Array) -> dict[str, Any]:
    """`variables` of a model that begins with `normalize`, with `mean` and `std` [mels] set."""
    return variables | {"norm": {_NAME: {"mean": mean, "std": std}}}


def conv(x: jax.Array, channels: int, size: int, stride: int = 1) -> jax.Array:
    """A `size` x `size` convolution of x [batch, time, mel, channel], without bias, in the type of x."""
    he = nn.initializers.he_normal()
    settings: dict[str, Any] = {"use_bias": False, "dtype": x.dtype, "kernel_init": he, "precision": _EXACT}
    if size == 1:  # the same product, faster on CPUs
        return nn.Dense(channels, **settings)(x[:, ::stride, ::stride])
    return nn.Conv(channels, (size, size), (stride, stride), **settings)(x)


def batch_norm(x: jax.Array, *, train: bool, initial_scale: float = 1.0, epsilon: float = 1e-5) -> jax.Array:
    """Batch-norm of x [..., channel] in the type of x: by batch statistics if `train`, else running ones."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        dtype=x.dtype,
        scale_init=nn.initializers.constant(initial_scale),
    )(x)


class Linear(nn.Module):
    """x · W + b, with W and each vector of x quantized to `quant.output` bits."""

    outputs: int
    quant: QuantConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w = self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], self.outputs), jnp.float32)
        b = self.param("b", nn.initializers.zeros, self.outputs, jnp.float32)
        bits, gradient = self.quant.output, self.quant.gradient
        y = quantized_matmul(w, x_bits=bits, w_bits=bits, gradient=gradient)(x)
        return y + jnp.broadcast_to(b, y.shape)


class ClassLogits(nn.Module):
    """Logits of a tagger's classes from x [batch, step, size], weighted by a softmax over time; float."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> Float[Array, "batch class"]:
        steps, attention = (nn.Dense(self.classes, name=name)(x) for name in ("output", "attention"))
        return (jax.nn.softmax(attention, axis=-2) * steps).sum(axis=-2)


def stem(features: jax.Array, channels: int, dtype: str, *, train: bool) -> jax.Array:
    """First layers of image networks: features [batch, time, mel] to [batch, time / 4, mel / 4, channel].

    `normalize`, then in `dtype` 7x7/2 convolution, batch-norm, ReLU and 3x3/2 max-pool; sizes round up.
    """
    x = normalize(features)[..., None].astype(dtype)
    x = nn.relu(batch_norm(conv(x, channels, 7, 2), train=train))
    return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def pooled_logits(x: jax.Array, events: int) -> jax.Array:
    """Last layers of image networks: mean of x [batch, time, mel, channel] over time and mel; linear."""
    return nn.Dense(events, precision=_EXACT)(x.astype(jnp.float32).mean(axis=(1, 2)))
