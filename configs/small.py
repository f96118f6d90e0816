"""Small, accurate students: convolutions in front of a smaller LSTM, weights of 8 and 4 bits.

All but the float student use the integer-only scheme (docs/integer.md).  Training clips are shifted in time,
changed in level and mixed, and so are labels and teachers' posteriors, which have most of the weight.
With a head for a teacher, students also learn from views and all classes of its taggers (docs/teachers.md).
Figures on real recordings: docs/results/own.md.

qkd-jax train small --data.root DIR --teacher yamnet.toml
qkd-jax train small --data.root DIR
"""

from qkd_jax.config import (
    AugmentConfig,
    ClipRecipe,
    DenseNetConfig,
    LSTMConfig,
    ModelConfig,
    QuantConfig,
    RunConfig,
)

_lstm = LSTMConfig(convolutions=(16, 32, 64, 64), time_strides=3, hidden_size=128, pooling="attention")

config = RunConfig(
    name="small",
    recipe=ClipRecipe(
        epochs=12, min_updates=800, alpha=0.8, temperature=1.0, softmax_weight=1.0, class_weight=0.02
    ),
    augment=AugmentConfig(time_shift=0.25, gain=6.0, mixtures=0.5, views=2, least_views=2000),
    models={
        "teacher": ModelConfig(network=DenseNetConfig(), learning_rate=1e-3),
        "distilled": ModelConfig(network=_lstm, teachers=("teacher",), epochs=16),
        **{
            f"distilled-{bits}": ModelConfig(
                network=_lstm.quantized(QuantConfig.integer(bits)),
                teachers=("teacher",),
                start="distilled",
                learning_rate=1e-3,
                epochs=4,
            )
            for bits in (8, 4)
        },
    },
)
