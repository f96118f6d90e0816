"""Five models on recordings that the demo synthesises itself, in a few minutes on two cores."""

import dataclasses

from qkd_jax.config import (
    DataConfig,
    FeatureConfig,
    LSTMConfig,
    QuantConfig,
    RunConfig,
    TeacherConfig,
    TrainConfig,
)

_distilled = LSTMConfig(convolutions=(8, 16, 24), time_strides=2, hidden_size=24, pooling="attention")

config = RunConfig(
    name="demo",
    features=FeatureConfig(n_mels=32),
    data=DataConfig(source="demo", clip_seconds=2.0),
    teacher=TeacherConfig(blocks=(2, 2, 2), growth=12, stem=16),
    students={
        "plain": dataclasses.replace(_distilled, distill=False),
        "distilled": _distilled,
        **{
            f"distilled-{bits}": dataclasses.replace(
                _distilled, quant=QuantConfig.integer(bits), start="distilled", learning_rate=1e-3
            )
            for bits in (8, 4)
        },
    },
    train=TrainConfig(teacher_learning_rate=3e-3, teacher_epochs=8, student_epochs=12),
)
