"""A quantized LSTM over log-mel energies, optionally behind convolutions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.config import LSTMConfig
from qkd_jax.models.common import ClassLogits, Linear, Logits, batch_norm, normalize
from qkd_jax.nn.conv import conv_frames
from qkd_jax.nn.lstm import lstm_init, lstm_scan


class LSTM(nn.Module):
    """Log-mel energies to logits by `qkd_jax.nn.lstm`; by default the paper's, with a hidden size of 256.

    The output layer reads the last hidden state, the mean over time, or every state; in the last case a
    softmax over time, per event, weights the logits.  `step_logits` also returns the logits of every state,
    and with `classes`, those of that many classes of a tagger, which guide training.
    """

    config: LSTMConfig
    events: int
    classes: int = 0

    def __call__(
        self, features: Float[Array, "batch time mel"], *, train: bool = False
    ) -> Float[Array, "batch event"]:
        return self.step_logits(features, train=train).clip

    @nn.compact
    def step_logits(self, features: Float[Array, "batch time mel"], *, train: bool = False) -> Logits:
        config, x = self.config, normalize(features)
        if config.convolutions:
            x = _Front(config, name="front")(x, train=train)
        steps, inputs = x.shape[-2:]
        params = self.param(
            "lstm", lambda key: lstm_init(key, inputs, config.hidden_size, config.layers, steps=steps)
        )
        outputs, state = lstm_scan(params, x, quant=config.quant)
        output = Linear(self.events, config.quant, name="output")
        logits = output(outputs)
        classes = ClassLogits(self.classes, name="classes")(outputs) if self.classes else None
        if config.pooling == "attention":
            attention = Linear(self.events, config.quant, name="attention")
            clip = (jax.nn.softmax(attention(outputs), axis=-2) * logits).sum(axis=-2)
        else:
            clip = output(state[-1].h if config.pooling == "last" else outputs.mean(axis=-2))
        return Logits(clip, logits, classes=classes)


class _Front(nn.Module):
    """3 x 3 convolutions with batch-norm and ReLU: x [batch, time, mel] to [batch, step, inputs].

    Batch-norm remains float: it has only two numbers per channel.
    """

    config: LSTMConfig

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x, quant = x[..., None], self.config.quant
        for index, channels in enumerate(self.config.convolutions):
            shape = (3, 3, x.shape[-1], channels)
            w = self.param(f"w{index}", nn.initializers.he_normal(), shape, jnp.float32)
            x = conv_frames(
                w,
                x,
                strides=(self.config.conv_stride(index), 2),
                x_bits=quant.activations,
                w_bits=quant.weights,
                per_channel=quant.ranges == "channel",
                gradient=quant.gradient,
            )
            x = nn.relu(batch_norm(x, train=train))
        return x.reshape(*x.shape[:2], -1)
