"""The CRNN of sound event detection: convolutions, a GRU, and an output layer at each step."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.config import CRNNConfig, QuantConfig
from qkd_jax.models.common import Linear, Logits, batch_norm, normalize
from qkd_jax.nn.conv import conv_frames
from qkd_jax.nn.dropout import dropout
from qkd_jax.nn.gru import gru_init, gru_scan

_MIN_WEIGHT = 1e-7
_Convolve = Callable[..., jax.Array]
_Norm = Callable[[jax.Array], jax.Array]


class CRNN(nn.Module):
    """Log-mel energies to logits of a clip, and with `step_logits` of each step; by default DESED's baseline.

    Blocks of convolutions, dropout and an average pool; dropout; a GRU in one or both directions; dropout;
    an output layer at each step, and a second one for the weights of the steps (`clip_logits`).  Training
    needs a random key named `dropout`.  With `embedding`, an extra layer of that size with layer-norm reads
    the output of the convolutions, to be guided by embeddings of another model (EEFD, Xiao & Das 2024); it
    is not part of the deployed model.  With a GRU in one direction, a step depends on later frames only as
    far as convolutions reach, except that SE averages over the whole clip.

    `config.quant`, of the paper's scheme, quantizes weights and inputs of the convolutions, of the products
    within a block and of the output layers, and the GRU (`qkd_jax.nn.gru`); batch-norms and sigmoids remain
    float.  Raises ValueError if the pools leave nothing of the features.
    """

    config: CRNNConfig
    events: int
    embedding: int = 0

    def __call__(
        self, features: Float[Array, "batch time mel"], *, train: bool = False
    ) -> Float[Array, "batch event"]:
        return self.step_logits(features, train=train).clip

    @nn.compact
    def step_logits(self, features: Float[Array, "batch time mel"], *, train: bool = False) -> Logits:
        config = self.config
        x = _Front(config, name="front")(normalize(features), train=train)
        embedding = _Embedding(self.embedding, name="embedding")(x) if self.embedding else None
        inputs = x.shape[-1]
        gru = self.param("gru", lambda key: _gru_init(key, inputs, config))
        x = _Dropout(config.dropout)(x, train=train)
        for layer in gru:
            outputs = [
                gru_scan(direction, x, quant=config.quant, reverse=reverse)[0]
                for direction, reverse in zip(layer, (False, True))
            ]
            x = jnp.concatenate(outputs, axis=-1)
        x = _Dropout(config.dropout)(x, train=train)
        steps, attention = (
            Linear(self.events, config.quant, name=name)(x) for name in ("output", "attention")
        )
        return Logits(clip_logits(steps, attention), steps, embedding)


def clip_logits(
    steps: Float[Array, "*batch step event"], attention: Float[Array, "*batch step event"]
) -> Float[Array, "*batch event"]:
    """The logit of Σ_t a σ(steps) / Σ_t a, where a is the softmax of `attention` over events, at least 1e-7.

    The softmax is over events, not over time, as in DESED's baseline.
    """
    # In logarithms, since sums of probabilities near 0 or 1 would lose their logit to rounding:
    # logit(Σ a σ(z) / Σ a) = log Σ a σ(z) - log Σ a σ(-z).
    log_a = jnp.maximum(jax.nn.log_softmax(attention, axis=-1), jnp.log(_MIN_WEIGHT))
    on, off = (jax.nn.logsumexp(jax.nn.log_sigmoid(z) + log_a, axis=-2) for z in (steps, -steps))
    return on - off


def _gru_init(key: jax.Array, inputs: int, config: CRNNConfig) -> Any:
    """Parameters per layer and direction."""
    directions = 2 if config.bidirectional else 1
    return tuple(
        tuple(
            gru_init(key, directions * config.hidden_size if index else inputs, config.hidden_size)
            for key in keys
        )
        for index, keys in enumerate(jax.random.split(key, (config.layers, directions)))
    )


class _Dropout(nn.Module):
    """`dropout` in training, with the random key of that name."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return dropout(self.make_rng("dropout"), x, self.rate) if train and self.rate else x


class _Embedding(nn.Module):
    """A linear layer with layer-norm."""

    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.LayerNorm()(nn.Dense(self.size, precision=jax.lax.Precision.HIGHEST)(x))


class _Front(nn.Module):
    """Blocks, each with dropout and an average pool: x [batch, time, mel] to [batch, step, inputs]."""

    config: CRNNConfig

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        config, (frames, mels), x = self.config, x.shape[1:], x[..., None]

        def conv(x: jax.Array, channels: int, size: int = 3, **settings: Any) -> jax.Array:
            return _Conv(channels, size, config.quant, **settings)(x)

        def norm(x: jax.Array) -> jax.Array:
            return batch_norm(x, train=train, epsilon=1e-3)

        for block, (channels, pool) in enumerate(zip(config.channels, config.pools)):
            x = _BLOCKS[config.trunk](x, channels, conv, norm)
            if config.trunk == "se" and block < len(config.channels) - 1:
                x = _tfwse(_se(x, conv), conv)
            x = _Dropout(config.dropout)(x, train=train)
            x = nn.avg_pool(x, pool, pool)
            if 0 in x.shape[1:]:
                raise ValueError(f"pools: nothing is left of {frames} x {mels} after block {block + 1}")
        return x.reshape(*x.shape[:2], -1)


def _gated(x: jax.Array, channels: int, conv: _Convolve, norm: _Norm) -> jax.Array:
    """A gated linear unit in the form of DESED's baseline: the sigmoid is of the linear layer's input."""
    x = norm(conv(x, channels))
    return conv(x, channels, 1) * nn.sigmoid(x)


def _context_gated(x: jax.Array, channels: int, conv: _Convolve, norm: _Norm) -> jax.Array:
    x = norm(conv(x, channels))
    return x * nn.sigmoid(conv(x, channels, 1))


def _se(x: jax.Array, conv: _Convolve) -> jax.Array:
    """Squeeze and excitation (Hu et al. 2018): weights of channels from their means over the clip."""
    return x * _excitation(x.mean(axis=(1, 2), keepdims=True), conv)


def _tfwse(x: jax.Array, conv: _Convolve) -> jax.Array:
    """Time-frame frequency-wise SE (Nam & Park 2023): weights of bands from their means, frame by frame."""
    squeezed = x.mean(axis=3, keepdims=True).swapaxes(2, 3)
    return x * _excitation(squeezed, conv).swapaxes(2, 3)


def _excitation(x: jax.Array, conv: _Convolve) -> jax.Array:
    size = x.shape[-1]
    hidden = nn.relu(conv(x, max(size // 4, 4), 1, bias=False))
    return nn.sigmoid(conv(hidden, size, 1, bias=False))


def _separable(x: jax.Array, channels: int, conv: _Convolve, norm: _Norm) -> jax.Array:
    """Depthwise and pointwise convolution (MobileNet, Howard et al. 2017)."""
    groups = x.shape[-1]
    depth = groups if groups > 1 else channels  # all outputs read the single channel of the features
    x = nn.relu(norm(conv(x, depth, groups=groups, bias=False)))
    return nn.relu(norm(conv(x, channels, 1, bias=False)))


def _residual(x: jax.Array, channels: int, conv: _Convolve, norm: _Norm) -> jax.Array:
    branch = nn.relu(norm(conv(x, channels, bias=False)))
    branch = norm(conv(branch, channels, bias=False))
    shortcut = x if x.shape == branch.shape else norm(conv(x, channels, 1, bias=False))
    return nn.relu(shortcut + branch)


def _dense(x: jax.Array, channels: int, conv: _Convolve, norm: _Norm) -> jax.Array:
    """Two layers that each append half of `channels`, then a 1 x 1 convolution to `channels`."""
    for _ in range(2):
        new = nn.relu(norm(conv(x, max(channels // 2, 1), bias=False)))
        x = jnp.concatenate([x, new], axis=-1)
    return nn.relu(norm(conv(x, channels, 1, bias=False)))


_BLOCKS = {
    "gated": _gated,
    "se": _context_gated,
    "separable": _separable,
    "resnet": _residual,
    "densenet": _dense,
}


class _Conv(nn.Module):
    """Q(W) * Q(x) + b by `conv_frames`, for x [batch, time, mel, channel] padded in time and mel."""

    channels: int
    size: int
    quant: QuantConfig
    groups: int = 1
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.channels)
        w = self.param("w", nn.initializers.he_normal(), shape, jnp.float32)
        x = conv_frames(
            w,
            x,
            pad_time=True,
            groups=self.groups,
            x_bits=self.quant.activations,
            w_bits=self.quant.weights,
            per_channel=self.quant.ranges == "channel",
            gradient=self.quant.gradient,
        )
        if not self.bias:
            return x
        b = self.param("b", nn.initializers.zeros, self.channels, jnp.float32)
        return x + jnp.broadcast_to(b, x.shape)
