"""Models of waveforms in ONNX and LiteRT files."""

import importlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qkd_jax.config import InputError

Run = Callable[[np.ndarray], list[np.ndarray]]
Shape = list[int | None]


def open_model(path: Path) -> tuple[int | None, Run]:
    """Open the model in the .onnx or .tflite file at `path`.

    Returns the number of samples that it takes, None for any, and the function, for any thread,
    from a float32 waveform [samples] to its outputs.  Raises InputError if there is none, if its
    runtime isn't installed, or if it takes anything but one float32 waveform; so does the function
    if the model fails on one.
    """
    opener = {".onnx": _onnx, ".tflite": _litert}.get(path.suffix)
    if opener is None:
        raise InputError(f"file: expected a model in .onnx or .tflite, got {path}")
    if not path.is_file():
        raise InputError(f"file: expected a model at {path}, found none")
    shape, run = opener(path)

    def checked(waveform: np.ndarray) -> list[np.ndarray]:
        array = waveform.reshape([1] * (len(shape) - 1) + [-1])
        try:
            return run(array)
        except Exception as error:  # of a class of its own for each fault
            raise InputError(f"{path}: failed on {len(waveform)} samples: {_first_line(error)}") from None

    return shape[-1], checked


def _onnx(path: Path) -> tuple[Shape, Run]:
    onnxruntime = _import("onnxruntime", path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"{path}: expected an ONNX model: {_first_line(error)}") from None
    shape = _waveform_shape(path, [(item.shape, item.type) for item in session.get_inputs()], "tensor(float)")
    name = session.get_inputs()[0].name
    return shape, lambda array: session.run(None, {name: array})


def _litert(path: Path) -> tuple[Shape, Run]:
    litert = _import("ai_edge_litert.interpreter", path)

    def new() -> Any:
        return litert.Interpreter(str(path), num_threads=1)

    try:
        inputs = new().get_input_details()
    except Exception as error:
        raise InputError(f"{path}: expected a LiteRT model: {_first_line(error)}") from None
    shape = _waveform_shape(
        path, [(item["shape_signature"].tolist(), item["dtype"]) for item in inputs], np.float32
    )
    position = inputs[0]["index"]
    opened = threading.local()  # an interpreter is of one thread

    def run(array: np.ndarray) -> list[np.ndarray]:
        if not hasattr(opened, "interpreter"):
            opened.interpreter = new()
        interpreter = opened.interpreter
        if tuple(interpreter.get_input_details()[0]["shape"]) != array.shape:
            interpreter.resize_tensor_input(position, array.shape)
        interpreter.allocate_tensors()
        interpreter.reset_all_variables()
        interpreter.set_tensor(position, array)
        interpreter.invoke()
        return [interpreter.get_tensor(item["index"]) for item in interpreter.get_output_details()]

    return shape, run


def _waveform_shape(path: Path, inputs: Sequence[tuple[Sequence[Any], Any]], float32: Any) -> Shape:
    """The shape of the only input, None where it is free; raises InputError if that is no waveform."""
    shapes: list[Shape] = [
        [size if isinstance(size, int) and size > 0 else None for size in shape] for shape, _ in inputs
    ]
    if (
        len(inputs) == 1
        and inputs[0][1] == float32
        and shapes[0]
        and all(size in (1, None) for size in shapes[0][:-1])
    ):
        return shapes[0]
    found = ", ".join(f"{kind} {shape}" for shape, (_, kind) in zip(shapes, inputs))
    raise InputError(
        f"{path}: expected a model of one float32 waveform, [samples] or [1, samples], found inputs {found}"
    )


def _import(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{path}: needs {name}: pip install 'qkd_jax[taggers]'") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
