"""Five models on recordings that the demo synthesises itself, in a few minutes on two cores."""

from qkd_jax.config import (
    Config,
    DataConfig,
    FeatureConfig,
    QuantConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)

config = Config(
    name="demo",
    features=FeatureConfig(n_mels=32),
    data=DataConfig(source="demo", clip_seconds=2.0),
    teacher=TeacherConfig(blocks=(2, 2, 2), growth=12, stem=16),
    students={
        "plain": StudentConfig(units=40, distill=False),
        "distilled": StudentConfig(units=40),
        "distilled-8": StudentConfig(
            units=40, quant=QuantConfig.paper(8), start="distilled", learning_rate=1e-3
        ),
        "distilled-4": StudentConfig(
            units=40, quant=QuantConfig.paper(4), start="distilled", learning_rate=1e-3
        ),
    },
    train=TrainConfig(teacher_learning_rate=3e-3, teacher_epochs=8, student_epochs=24),
)
