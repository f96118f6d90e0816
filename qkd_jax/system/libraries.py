"""Libraries that are optional, and ONNX Runtime as qkd_jax uses it."""

import importlib
from pathlib import Path
from typing import Any

from qkd_jax.errors import InputError


def optional(name: str, what: object, remedy: str) -> Any:
    """The module `name`; raises InputError, with `remedy`, if it isn't installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{what}: needs {name.split('.')[0]}: {remedy}") from None


def has(name: str) -> bool:
    """Whether the module `name` is installed."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def onnx_session(model: bytes | Path, where: object) -> Any:
    """The onnxruntime.InferenceSession of `model`, its content or its file, on one thread of the CPU.

    Raises InputError, which names `where`, if onnxruntime isn't installed, and its exceptions for bad models.
    """
    onnxruntime = optional("onnxruntime", where, "pip install 'qkd_jax[taggers]'")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4  # only fatal messages
    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
