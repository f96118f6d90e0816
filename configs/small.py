"""Small, accurate students: convolutions in front of a smaller LSTM, weights of 8 and 4 bits.

All but the float student use the integer-only scheme (docs/integer.md).  Figures of students of this size on
real recordings, by a longer recipe: docs/results/past.md.

qkd-jax train small --data.root DIR
qkd-jax train small --data.root DIR --teacher yamnet.toml
"""

from qkd_jax.config import ClipRecipe, DenseNetConfig, LSTMConfig, ModelConfig, QuantConfig, RunConfig

_lstm = LSTMConfig(convolutions=(16, 32, 64, 64), time_strides=3, hidden_size=128, pooling="attention")

config = RunConfig(
    name="small",
    recipe=ClipRecipe(epochs=8),
    models={
        "teacher": ModelConfig(network=DenseNetConfig(), learning_rate=1e-3, epochs=12),
        "distilled": ModelConfig(network=_lstm, teachers=("teacher",)),
        **{
            f"distilled-{bits}": ModelConfig(
                network=_lstm.quantized(QuantConfig.integer(bits)),
                teachers=("teacher",),
                start="distilled",
                learning_rate=1e-3,
            )
            for bits in (8, 4)
        },
    },
)
