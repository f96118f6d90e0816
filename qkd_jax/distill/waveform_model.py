"""Untrusted models of waveforms in ONNX and LiteRT files; each is first run once in a subprocess."""

import contextlib
import difflib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qkd_jax.errors import InputError, first_line, naming
from qkd_jax.system import isolation as trial
from qkd_jax.system.libraries import onnx_session, optional

Run = Callable[[np.ndarray], list[np.ndarray]]
Shape = list[int | None]

_RUNTIMES = {".onnx": "ONNX Runtime", ".tflite": "LiteRT"}
MAX_SAMPLES = 1 << 26
"""Longest input of a model: an hour at 16 kHz."""
_NOISE = 160_000
"""Samples of the trial input for a model that takes any number."""


def open_model(path: Path) -> tuple[int | None, Run]:
    """Open the model in the .onnx or .tflite file at `path`.

    Returns the number of samples that it takes, None for any, and the function from a float32 waveform
    [samples] to its outputs, safe in any thread.  Raises InputError if there is no such file, if its runtime
    isn't installed, if it takes anything but one float32 waveform, or if it makes the runtime crash or hang
    when opened or run on noise (another input may still crash it).  The function raises InputError if the
    model fails on a waveform.
    """
    _try(path)
    return open_untried(path)


def open_untried(path: Path, layer: str | None = None) -> tuple[int | None, Run]:
    """`open_model`, or with a `layer` `open_inner`, without the trial: this process may crash."""
    _check(path)
    with naming(path, f"a model for {_RUNTIMES[path.suffix]}"):
        shape, run = _onnx(path) if path.suffix == ".onnx" else _litert(path, layer)

    def checked(waveform: np.ndarray) -> list[np.ndarray]:
        array = waveform.reshape([1] * (len(shape) - 1) + [-1])
        try:
            outputs = run(array)
        except Exception as error:
            raise InputError(f"{path}: failed on {len(waveform)} samples: {first_line(error)}") from None
        for output in outputs:  # ONNX also has outputs of text, lists and maps
            if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiub":
                raise InputError(f"{path}: expected arrays of numbers, found {type(output).__name__}")
        return outputs

    return shape[-1], checked


def open_inner(path: Path, layer: str) -> tuple[int | None, Callable[[np.ndarray], np.ndarray]]:
    """Open the model in the .tflite file at `path` to read its inner tensor `layer`.

    `layer` is the name of a tensor that the model computes, or a part of the name that no other has.
    Like `open_model`, but the function returns that tensor's values, float32 [size]; codes are
    dequantized.  Raises InputError as `open_model` does, and if there is no such tensor.
    """
    if path.suffix != ".tflite":
        raise InputError(f"layer: expected a .tflite for inner layers, got {path}")
    _try(path, layer)
    samples, run = open_untried(path, layer)
    return samples, lambda waveform: run(waveform)[0].astype(np.float32).ravel()


def _check(path: Path) -> None:
    if path.suffix not in _RUNTIMES:
        raise InputError(f"file: expected a model in .onnx or .tflite, got {path}")
    if not os.path.isfile(path):  # False also for names that the system refuses
        raise InputError(f"file: expected a model at {path}, found none")


def _try(path: Path, *layer: str) -> None:
    _check(path)
    trial.try_apart(__name__, path, *layer, runtime=_RUNTIMES[path.suffix])


def run_once(path: Path, layer: str | None = None) -> None:
    """Open the model at `path` and run it on noise; this process may crash.  Raises InputError."""
    samples, run = open_untried(path, layer)
    # A model that takes any number of samples may still refuse this one.
    with contextlib.suppress(*() if samples else (InputError,)):
        run(np.random.default_rng(0).normal(0, 0.1, samples or _NOISE).astype(np.float32))


def _onnx(path: Path) -> tuple[Shape, Run]:
    session = onnx_session(path, path)
    shape = _waveform_shape(path, [(item.shape, item.type) for item in session.get_inputs()], "tensor(float)")
    name = session.get_inputs()[0].name
    return shape, lambda array: session.run(None, {name: array})


def _litert(path: Path, layer: str | None = None) -> tuple[Shape, Run]:
    litert = optional("ai_edge_litert.interpreter", path, "pip install 'qkd_jax[taggers]'")
    options: dict[str, Any] = {"num_threads": 1}
    if layer is not None:
        # XNNPACK, the default delegate, would fuse operations and reuse the memory of tensors.
        options["experimental_op_resolver_type"] = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        options["experimental_preserve_all_tensors"] = True

    def new() -> Any:
        return litert.Interpreter(str(path), **options)

    model = new()
    inputs = model.get_input_details()
    shape = _waveform_shape(
        path, [(item["shape_signature"].tolist(), item["dtype"]) for item in inputs], np.float32
    )
    position = inputs[0]["index"]
    outputs = model.get_output_details() if layer is None else [_computed(path, model, layer)]
    opened = threading.local()  # an interpreter serves one thread

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
        return [_values(interpreter.get_tensor(item["index"]), *item["quantization"]) for item in outputs]

    return shape, run


def _computed(path: Path, model: Any, layer: str) -> Any:
    """The tensor `layer` of the LiteRT model; raises InputError if no operation computes it."""
    given = {index for operation in model._get_ops_details() for index in operation["outputs"]}
    tensors = model.get_tensor_details()
    computed = [item for item in tensors if item["index"] in given]
    exact = [item for item in tensors if item["name"] == layer]
    found = exact or [item for item in computed if layer in item["name"]]
    if len(found) > 1:
        some = ", ".join(repr(item["name"]) for item in found[:3])
        raise InputError(
            f"layer: expected a part of one name in {path}, got {layer!r}, a part of {len(found)}: {some}"
        )
    if not found or found[0]["index"] not in given:
        names = difflib.get_close_matches(layer, [item["name"] for item in computed])
        near = "".join(f", maybe {name!r}" for name in names)
        raise InputError(f"layer: expected a tensor that {path} computes, got {layer!r}{near}")
    return found[0]


def _values(codes: np.ndarray, scale: float, zero: int) -> np.ndarray:
    """The values of `codes`; without a scale, `codes` themselves."""
    return (codes.astype(np.float32) - zero) * np.float32(scale) if scale else codes


def _waveform_shape(path: Path, inputs: Sequence[tuple[Sequence[Any], Any]], float32: Any) -> Shape:
    """The shape of the only input, None for free sizes; raises InputError if it isn't a waveform."""
    shapes: list[Shape] = [
        [size if isinstance(size, int) and size > 0 else None for size in shape] for shape, _ in inputs
    ]
    if (
        len(inputs) == 1
        and inputs[0][1] == float32
        and shapes[0]
        and all(size in (1, None) for size in shapes[0][:-1])
        and (shapes[0][-1] or 1) <= MAX_SAMPLES
    ):
        return shapes[0]
    found = ", ".join(f"{kind} {shape}" for shape, (_, kind) in zip(shapes, inputs))
    raise InputError(
        f"{path}: expected a model of one float32 waveform, [samples] or [1, samples], found inputs {found}"
    )
