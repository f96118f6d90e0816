"""Models of waveforms in ONNX and LiteRT files."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qkd_jax.config import InputError

Run = Callable[[np.ndarray], list[np.ndarray]]


def open_model(path: Path) -> tuple[int | None, Run]:
    """Open the model in the .onnx or .tflite file at `path`, for one thread.

    Returns the number of samples that it takes, None for any, and the function from a float32
    waveform [samples] to its outputs.  Raises InputError if there is none, if its runtime isn't
    installed, or if it takes anything but one float32 waveform.
    """
    opener = {".onnx": _onnx, ".tflite": _litert}.get(path.suffix)
    if opener is None:
        raise InputError(f"file: expected a model in .onnx or .tflite, got {path}")
    if not path.is_file():
        raise InputError(f"file: expected a model at {path}, found none")
    return opener(path)


def _onnx(path: Path) -> tuple[int | None, Run]:
    """`open_model` by ONNX Runtime."""
    onnxruntime = _import("onnxruntime", path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of a class of its own for each fault
        raise InputError(f"{path}: expected an ONNX model: {_first_line(error)}") from None
    shape = _checked_shape(
        path, [(item.shape, item.type == "tensor(float)") for item in session.get_inputs()]
    )
    name = session.get_inputs()[0].name
    return shape[-1], lambda waveform: session.run(
        None, {name: waveform.reshape([1] * (len(shape) - 1) + [-1])}
    )


def _litert(path: Path) -> tuple[int | None, Run]:
    """`open_model` by LiteRT."""
    litert = _import("ai_edge_litert.interpreter", path)
    try:
        interpreter = litert.Interpreter(str(path), num_threads=1)
    except Exception as error:
        raise InputError(f"{path}: expected a LiteRT model: {_first_line(error)}") from None
    inputs = [
        ([None if size < 0 else int(size) for size in item["shape_signature"]], item["dtype"] == np.float32)
        for item in interpreter.get_input_details()
    ]
    shape = _checked_shape(path, inputs)
    position = interpreter.get_input_details()[0]["index"]

    def run(waveform: np.ndarray) -> list[np.ndarray]:
        array = waveform.reshape([1] * (len(shape) - 1) + [-1])
        if tuple(interpreter.get_input_details()[0]["shape"]) != array.shape:
            interpreter.resize_tensor_input(position, array.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(position, array)
        interpreter.invoke()
        return [interpreter.get_tensor(item["index"]) for item in interpreter.get_output_details()]

    return shape[-1], run


def _checked_shape(path: Path, inputs: Sequence[tuple[Sequence[Any], bool]]) -> list[int | None]:
    """The shape of the only input, None where it is free; raises InputError if that is no waveform."""
    shapes = [[size if isinstance(size, int) else None for size in shape] for shape, _ in inputs]
    one_waveform = (
        len(inputs) == 1 and inputs[0][1] and shapes[0] and all(size in (1, None) for size in shapes[0][:-1])
    )
    if not one_waveform:
        raise InputError(
            f"{path}: expected a model of one float32 waveform, [samples] or [1, samples], found inputs "
            f"{', '.join(map(str, shapes))}"
        )
    return shapes[0]


def _import(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{path}: needs {name}: pip install 'qkd_jax[taggers]'") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
