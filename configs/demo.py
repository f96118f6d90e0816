"""Five models on recordings that the demo synthesises itself, in a few minutes on two cores."""

from qkd_jax.config import (
    DemoData,
    DenseNetConfig,
    FeatureConfig,
    LSTMConfig,
    ModelConfig,
    QuantConfig,
    RunConfig,
)

_lstm = LSTMConfig(convolutions=(8, 16, 24), time_strides=2, hidden_size=24, pooling="attention")

config = RunConfig(
    name="demo",
    features=FeatureConfig(n_mels=32),
    data=DemoData(clip_seconds=2.0),
    models={
        "teacher": ModelConfig(
            network=DenseNetConfig(blocks=(2, 2, 2), growth=12, stem=16), learning_rate=3e-3, epochs=8
        ),
        "plain": ModelConfig(network=_lstm),
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
