"""The student: a quantized LSTM over log-mel energies and one float32 output layer."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from qkd_jax.config import StudentConfig
from qkd_jax.models.common import normalize
from qkd_jax.nn.lstm import lstm_init, lstm_scan


class LSTMStudent(nn.Module):
    """Log-mel energies to logits by `qkd_jax.nn.lstm`; by default the paper's 256 units.

    The output layer reads the last hidden state (or, options, the mean over time, or every state,
    the logits then weighed over time by a softmax for each event) and stays float32, as in the
    paper; so does what weighs.
    """

    config: StudentConfig
    events: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch time mel"], *, train: bool = False
    ) -> Float[Array, "batch event"]:
        config, x = self.config, _stacked(normalize(features), self.config.stack)
        steps, inputs = x.shape[-2:]
        params = self.param(
            "lstm", lambda key: lstm_init(key, inputs, config.units, config.layers, steps=steps)
        )
        outputs, state = lstm_scan(params, x, quant=config.quant)
        read = nn.Dense(self.events, precision=jax.lax.Precision.HIGHEST)
        if config.pooling == "attention":
            attend = nn.Dense(self.events, precision=jax.lax.Precision.HIGHEST, name="attention")
            return (jax.nn.softmax(attend(outputs), axis=-2) * read(outputs)).sum(axis=-2)
        return read(state[-1].h if config.pooling == "last" else outputs.mean(axis=-2))


def _stacked(x: Float[Array, "batch time mel"], frames: int) -> Float[Array, "batch step inputs"]:
    """Each `frames` frames as one."""
    batch, time, mels = x.shape
    return x[:, : time // frames * frames].reshape(batch, time // frames, frames * mels)
