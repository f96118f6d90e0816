"""Runs to override and to explain: of clips, and of timed events."""

import qkd_jax.config as cfg
from qkd_jax.config import ModelConfig

_LSTM = cfg.LSTMConfig(convolutions=(8, 16, 24), time_strides=2, hidden_size=24, pooling="attention")
_FOUR = _LSTM.quantized(cfg.QuantConfig.integer(4))
_DENSENET = cfg.DenseNetConfig(blocks=(2, 2, 2), growth=12, stem=16)
_FINE_TUNED = {"teachers": ("teacher",), "start": "distilled", "learning_rate": 1e-3}
CLIPS = cfg.RunConfig(
    name="demo",
    data=cfg.DemoData(clip_seconds=2.0, events=("bell",)),
    recipe=cfg.ClipRecipe(epochs=12),
    models={
        "teacher": ModelConfig(network=_DENSENET, epochs=8),
        "plain": ModelConfig(network=_LSTM),
        "distilled": ModelConfig(network=_LSTM, teachers=("teacher",)),
        "distilled-4": ModelConfig(network=_FOUR, **_FINE_TUNED),
    },
)
_MEAN_STEP = {"teachers": ("teacher",), "objective": cfg.EventObjective(update="mean_step")}
EVENTS = cfg.RunConfig(
    name="desed",
    data=cfg.DESEDData(),
    recipe=cfg.EventRecipe(),
    models={
        "baseline": ModelConfig(network=cfg.CRNNConfig()),
        "teacher": ModelConfig(network=cfg.CRNNConfig.se(32)),
        "student": ModelConfig(network=cfg.CRNNConfig.se_third(), **_MEAN_STEP),
    },
)
