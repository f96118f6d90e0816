"""Students that hear better in fewer bytes: convolutions in front of a smaller LSTM, weights of 8 and 4 bits.

All but the one in float are integers that a device computes with (docs/integer.md).

What students of this size come to on real recordings, by a longer recipe: docs/results/past.md.

python train.py small --data.root DIR
python train.py small --data.root DIR --distill.teachers yamnet.toml
"""

import dataclasses

from qkd_jax.config import LSTMConfig, QuantConfig, RunConfig, TrainConfig

_float = LSTMConfig(convolutions=(16, 32, 64, 64), time_strides=3, hidden_size=128, pooling="attention")

config = RunConfig(
    name="small",
    students={
        "distilled": _float,
        **{
            f"distilled-{bits}": dataclasses.replace(
                _float, quant=QuantConfig.integer(bits), start="distilled", learning_rate=1e-3
            )
            for bits in (8, 4)
        },
    },
    train=TrainConfig(student_epochs=8),
)
