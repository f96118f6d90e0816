"""From recordings and labels to a small acoustic event detector, by quantized distillation.

The public names are those of `__all__`.  Each is imported at its first use, so that `import qkd_jax` is fast.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_MODULES = {
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
    "log_mel": "audio.log_mel",
    "Detector": "detector.detector",
    "load": "detector.file",
    "detect": "detector.events",
    "to_jax": "runtimes.jax",
    "build_model": "models.build",
    "weighted_bce": "distill.objectives",
    "distillation_loss": "distill.objectives",
    "make_train_step": "training.step",
    "evaluate": "evaluation.metrics",
    "train": "commands.train",
    "cross_validate": "commands.train",
    "score": "commands.evaluate",
    "export": "commands.export",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'qkd_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"qkd_jax.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
