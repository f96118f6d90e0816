"""From recordings and labels to a small acoustic event detector, by quantized distillation.

The names below are the public ones; each is imported when it is first asked for.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "QTensor": "quant.qtensor",
    "quantize": "quant.qtensor",
    "dequantize": "quant.qtensor",
    "fake_quant": "quant.fake_quant",
    "qdot": "quant.qdot",
    "pack": "quant.pack",
    "unpack": "quant.pack",
    "QuantConfig": "config",
    "FeatureConfig": "config",
    "lstm_init": "nn.lstm",
    "lstm_step": "nn.lstm",
    "lstm_scan": "nn.lstm",
    "log_mel": "audio.logmel",
    "Detector": "deploy.detector",
    "load": "deploy.artefact",
    "detect": "deploy.events",
    "to_jax": "deploy.jax_runtime",
    "build_model": "models.build",
    "weighted_bce": "distill.losses",
    "distillation_loss": "distill.losses",
    "make_train_step": "train.step",
    "evaluate": "evaluation.metrics",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qkd_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"qkd_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
