"""The student: a quantized LSTM over log-mel energies and one float32 output layer."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from qkd_jax.config import StudentConfig
from qkd_jax.models.common import normalize
from qkd_jax.nn.lstm import lstm_init, lstm_scan


class LSTMStudent(nn.Module):
    """Log-mel energies to logits by `qkd_jax.nn.lstm`; by default the paper's 256 units.

    The output layer reads the last hidden state (or the mean over time, an option) and stays
    float32, as in the paper.
    """

    config: StudentConfig
    events: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch time mel"], *, train: bool = False
    ) -> Float[Array, "batch event"]:
        config, (steps, inputs) = self.config, features.shape[-2:]
        params = self.param(
            "lstm", lambda key: lstm_init(key, inputs, config.units, config.layers, steps=steps)
        )
        outputs, state = lstm_scan(params, normalize(features), quant=config.quant)
        pooled = state[-1].h if config.pooling == "last" else outputs.mean(axis=-2)
        return nn.Dense(self.events, precision=jax.lax.Precision.HIGHEST)(pooled)
