"""Runs to override and to explain: of clips, and of timed events."""

from qkd_jax.config import (
    ClipRecipe,
    CRNNConfig,
    DemoData,
    DenseNetConfig,
    DESEDData,
    EventObjective,
    EventRecipe,
    LSTMConfig,
    ModelConfig,
    QuantConfig,
    RunConfig,
)

_LSTM = LSTMConfig(convolutions=(8, 16, 24), time_strides=2, hidden_size=24, pooling="attention")
CLIPS = RunConfig(
    name="demo",
    data=DemoData(clip_seconds=2.0, events=("bell",)),
    recipe=ClipRecipe(epochs=12),
    models={
        "teacher": ModelConfig(network=DenseNetConfig(blocks=(2, 2, 2), growth=12, stem=16), epochs=8),
        "plain": ModelConfig(network=_LSTM),
        "distilled": ModelConfig(network=_LSTM, teachers=("teacher",)),
        "distilled-4": ModelConfig(
            network=_LSTM.quantized(QuantConfig.integer(4)),
            teachers=("teacher",),
            start="distilled",
            learning_rate=1e-3,
        ),
    },
)
EVENTS = RunConfig(
    name="desed",
    data=DESEDData(),
    recipe=EventRecipe(),
    models={
        "baseline": ModelConfig(network=CRNNConfig()),
        "teacher": ModelConfig(network=CRNNConfig.se(32)),
        "student": ModelConfig(
            network=CRNNConfig.se_third(),
            teachers=("teacher",),
            objective=EventObjective(update="mean_step"),
        ),
    },
)
