"""Untrusted models of waveforms in ONNX and LiteRT files; each is first run once in a subprocess."""

import contextlib
import difflib
import os
import threading
import warnings
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
_SAME = 0.02
"""Largest difference of an inner tensor with a delegate and without, relative to its largest value."""
_CODES = 2.5
"""And in codes, of a quantized tensor: the delegate rounds differently."""
_NOISE = 160_000
"""Samples of the trial input for a model that takes any number."""


def open_model(path: Path, layer: str | None = None) -> tuple[int | None, Run]:
    """Open the model in the .onnx or .tflite file at `path`.

    Returns the number of samples that it takes, None for any, and the function from a float32 waveform
    [samples] to its outputs, safe in any thread.  With a `layer`, the values of that output, or in a .tflite
    of that inner tensor, follow the outputs; it is the name of one, or a part that no other name has, and
    codes are dequantized.  Raises InputError if there is no such file or layer, if its runtime
    isn't installed, if it takes anything but one float32 waveform, or if it makes the runtime crash or hang
    when opened or run on noise (another input may still crash it).  The function raises InputError if the
    model fails on a waveform.
    """
    _check(path)
    more = () if layer is None else (layer,)
    trial.try_apart(__name__, path, *more, runtime=_RUNTIMES[path.suffix])
    return open_untried(path, layer)


def open_untried(path: Path, layer: str | None = None) -> tuple[int | None, Run]:
    """`open_model` without the trial: this process may crash."""
    _check(path)
    with naming(path, f"a model for {_RUNTIMES[path.suffix]}"):
        shape, run = (_onnx if path.suffix == ".onnx" else _litert)(path, layer)

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


def _check(path: Path) -> None:
    if path.suffix not in _RUNTIMES:
        raise InputError(f"file: expected a model in .onnx or .tflite, got {path}")
    if not os.path.isfile(path):  # False also for names that the system refuses
        raise InputError(f"file: expected a model at {path}, found none")


def run_once(path: Path, layer: str | None = None) -> None:
    """Open the model at `path` and run it on noise; this process may crash.  Raises InputError."""
    samples, run = open_untried(path, layer)
    # A model that takes any number of samples may still refuse this one.
    with contextlib.suppress(*() if samples else (InputError,)):
        run(np.random.default_rng(0).normal(0, 0.1, samples or _NOISE).astype(np.float32))


def _onnx(path: Path, layer: str | None) -> tuple[Shape, Run]:
    session = onnx_session(path, path)
    shape = _waveform_shape(path, [(item.shape, item.type) for item in session.get_inputs()], "tensor(float)")
    name, outputs = session.get_inputs()[0].name, [item.name for item in session.get_outputs()]
    wanted = outputs if layer is None else [*outputs, outputs[_named(path, outputs, layer)]]
    return shape, lambda array: session.run(wanted, {name: array})


def _litert(path: Path, layer: str | None) -> tuple[Shape, Run]:
    litert = optional("ai_edge_litert.interpreter", path, "pip install 'qkd_jax[taggers]'")

    def opened(**options: Any) -> tuple[Any, list[Any]]:
        """An interpreter, and the tensors to read from it."""
        with warnings.catch_warnings():  # against preserving all tensors, which a layer needs
            warnings.simplefilter("ignore", UserWarning)
            model = litert.Interpreter(str(path), num_threads=1, **options)
        outputs = model.get_output_details()
        return model, outputs if layer is None else [*outputs, _computed(path, model, layer)]

    options: dict[str, Any] = {}
    model, wanted = opened()
    inputs = model.get_input_details()
    shape = _waveform_shape(
        path, [(item["shape_signature"].tolist(), item["dtype"]) for item in inputs], np.float32
    )
    position = inputs[0]["index"]
    own = threading.local()  # an interpreter serves one thread

    def run_on(interpreter: Any, array: np.ndarray) -> list[np.ndarray]:
        if tuple(interpreter.get_input_details()[0]["shape"]) != array.shape:
            interpreter.resize_tensor_input(position, array.shape)
        interpreter.allocate_tensors()
        interpreter.reset_all_variables()
        interpreter.set_tensor(position, array)
        interpreter.invoke()
        return [_values(interpreter.get_tensor(item["index"]), *item["quantization"]) for item in wanted]

    if layer is not None and wanted[-1]["index"] not in [item["index"] for item in wanted[:-1]]:
        # XNNPACK, the default delegate, halves the time, but may skip tensors inside of operations it fuses.
        options["experimental_preserve_all_tensors"] = True
        plain = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        exact = options | {"experimental_op_resolver_type": plain}
        noise = np.random.default_rng(0).normal(0, 0.1, shape[-1] or _NOISE).astype(np.float32)
        noise = noise.reshape([1] * (len(shape) - 1) + [-1])
        expected = run_on(opened(**exact)[0], noise)[-1]
        try:
            difference = np.abs(run_on(opened(**options)[0], noise)[-1] - expected).max()
        except Exception:  # it has no such tensor
            difference = np.inf
        if difference > _SAME * np.abs(expected).max() + _CODES * wanted[-1]["quantization"][0]:
            options = exact

    def run(array: np.ndarray) -> list[np.ndarray]:
        if not hasattr(own, "interpreter"):
            own.interpreter, _ = opened(**options)
        return run_on(own.interpreter, array)

    return shape, run


def _computed(path: Path, model: Any, layer: str) -> Any:
    """The tensor `layer` of the LiteRT model; raises InputError if no operation computes it."""
    given = {index for operation in model._get_ops_details() for index in operation["outputs"]}
    computed = [item for item in model.get_tensor_details() if item["index"] in given]
    return computed[_named(path, [item["name"] for item in computed], layer)]


def _named(path: Path, names: Sequence[str], layer: str) -> int:
    """The place of the name `layer` among `names`, or of the only one of which it is a part."""
    found = [place for place, name in enumerate(names) if name == layer] or [
        place for place, name in enumerate(names) if layer in name
    ]
    if len(found) > 1:
        some = ", ".join(repr(names[place]) for place in found[:3])
        raise InputError(
            f"layer: expected a part of one name in {path}, got {layer!r}, a part of {len(found)}: {some}"
        )
    if not found:
        what = "an output of" if path.suffix == ".onnx" else "a tensor that"
        does = "" if path.suffix == ".onnx" else " computes"
        near = "".join(f", maybe {name!r}" for name in difflib.get_close_matches(layer, names))
        raise InputError(f"layer: expected {what} {path}{does}, got {layer!r}{near}")
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
