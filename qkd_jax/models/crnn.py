"""The CRNN of sound event detection: convolutions, a GRU, and a reading of each step."""

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

_LEAST = 1e-7
_Convolve = Callable[..., jax.Array]
_Norm = Callable[[jax.Array], jax.Array]


class CRNN(nn.Module):
    """Log-mel energies to the logits of a clip, and by `detect` of each step; by default DESED's baseline.

    Blocks of convolutions, dropout and an average pool; dropout; a GRU, in one or both directions;
    dropout; an output layer for each step, and a second one that weighs the steps (`clip_logits`).
    Training takes a random key for `dropout`.  With `embedding`, a layer of that size with layer-norm reads
    the convolutions' output, to be guided by embeddings of another model (EEFD, Xiao & Das 2024); no
    device has it.  In one direction a step hears what comes after it as far as convolutions reach; but SE
    has its means over the whole clip.

    In `config.quant`, the paper's scheme, are weights and inputs of convolutions, of products within a
    block and of the output layers, and the GRU (`qkd_jax.nn.gru`); batch-norms and sigmoids stay float.
    Raises ValueError where pools leave nothing of the features.
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
            ways = [
                gru_scan(way, x, quant=config.quant, reverse=reverse)[0]
                for way, reverse in zip(layer, (False, True))
            ]
            x = jnp.concatenate(ways, axis=-1)
        x = _Dropout(config.dropout)(x, train=train)
        frames, attention = (
            Linear(self.events, config.quant.output, name=name)(x) for name in ("output", "attention")
        )
        return Logits(clip_logits(frames, attention), frames, embedding)


def clip_logits(
    frames: Float[Array, "*batch step event"], attention: Float[Array, "*batch step event"]
) -> Float[Array, "*batch event"]:
    """The logit of Σ_t a σ(frames) / Σ_t a, with a, at least 1e-7, the softmax of `attention` over events.

    (Over events, not over time: so it is in DESED's baseline.)
    """
    log_a = jnp.maximum(jax.nn.log_softmax(attention, axis=-1), jnp.log(_LEAST))
    on, off = (jax.nn.logsumexp(jax.nn.log_sigmoid(z) + log_a, axis=-2) for z in (frames, -frames))
    return on - off


def _gru_init(key: jax.Array, inputs: int, config: CRNNConfig) -> Any:
    """Parameters of each layer, and in it of each direction."""
    ways = 2 if config.bidirectional else 1
    return tuple(
        tuple(
            gru_init(key, ways * config.hidden_size if index else inputs, config.hidden_size) for key in keys
        )
        for index, keys in enumerate(jax.random.split(key, (config.layers, ways)))
    )


class _Dropout(nn.Module):
    """`dropout` in training, by the key of that name."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return dropout(self.make_rng("dropout"), x, self.rate) if train and self.rate else x


class _Embedding(nn.Module):
    """A linear layer and layer-norm."""

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
                raise ValueError(f"pools: nothing is left of {frames} x {mels} behind block {block + 1}")
        return x.reshape(*x.shape[:2], -1)


def _gated(x: jax.Array, channels: int, conv: _Convolve, norm: _Norm) -> jax.Array:
    """A gated linear unit, as DESED's baseline has it: the gate is what the linear layer reads."""
    x = norm(conv(x, channels))
    return conv(x, channels, 1) * nn.sigmoid(x)


def _context_gated(x: jax.Array, channels: int, conv: _Convolve, norm: _Norm) -> jax.Array:
    x = norm(conv(x, channels))
    return x * nn.sigmoid(conv(x, channels, 1))


def _se(x: jax.Array, conv: _Convolve) -> jax.Array:
    """Squeeze and excitation (Hu et al. 2018): channels weighed by their means over the clip."""
    return x * _excitation(x.mean(axis=(1, 2), keepdims=True), conv)


def _tfwse(x: jax.Array, conv: _Convolve) -> jax.Array:
    """Time-frame frequency-wise SE (Nam & Park 2023): bands weighed by their means, frame by frame."""
    squeezed = x.mean(axis=3, keepdims=True).swapaxes(2, 3)
    return x * _excitation(squeezed, conv).swapaxes(2, 3)


def _excitation(x: jax.Array, conv: _Convolve) -> jax.Array:
    size = x.shape[-1]
    hidden = nn.relu(conv(x, max(size // 4, 4), 1, bias=False))
    return nn.sigmoid(conv(hidden, size, 1, bias=False))


def _separable(x: jax.Array, channels: int, conv: _Convolve, norm: _Norm) -> jax.Array:
    """Depthwise and pointwise (MobileNet, Howard et al. 2017); many read the one channel of features."""
    groups = x.shape[-1]
    depth = groups if groups > 1 else channels
    x = nn.relu(norm(conv(x, depth, groups=groups, bias=False)))
    return nn.relu(norm(conv(x, channels, 1, bias=False)))


def _residual(x: jax.Array, channels: int, conv: _Convolve, norm: _Norm) -> jax.Array:
    branch = nn.relu(norm(conv(x, channels, bias=False)))
    branch = norm(conv(branch, channels, bias=False))
    shortcut = x if x.shape == branch.shape else norm(conv(x, channels, 1, bias=False))
    return nn.relu(shortcut + branch)


def _dense(x: jax.Array, channels: int, conv: _Convolve, norm: _Norm) -> jax.Array:
    """Two layers, each of half the channels beside all before it, brought to `channels` by a 1 x 1."""
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
    """Q(W) * Q(x) + b, of x [batch, time, mel, channel] padded in time and mel (`conv_frames`)."""

    channels: int
    size: int
    quant: QuantConfig
    groups: int = 1
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.channels)
        w = self.param("w", nn.initializers.he_normal(), shape)
        x = conv_frames(
            w,
            x,
            pad_time=True,
            groups=self.groups,
            x_bits=self.quant.activations,
            w_bits=self.quant.weights,
            per_channel=self.quant.ranges == "channel",
        )
        if not self.bias:
            return x
        return x + jnp.broadcast_to(self.param("b", nn.initializers.zeros, self.channels), x.shape)
