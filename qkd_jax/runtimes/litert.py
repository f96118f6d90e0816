"""Detectors as LiteRT models: one step of the LSTM, its weights our codes, its activations floats.

A step takes `frames`, the log-mel energies that it reads, float32 [frames, mels], and the state before it,
`h<k>` and `c<k>` of layer k, float32 [1, units], zeros at the start.  It gives `logits` and, with attention,
the logarithm of its weight, `attention`, float32 [1, events], and the state after it, `next_h<k>` and
`next_c<k>`.

Weights and their scales are the detector's, but kernels round activations to 8 bits by a rule of their own:
what a step gives is near what the integer scheme does, not equal to it.

Behind the model lies a zip archive, as LiteRT has it for what comes with a model: `detector.json`, its
`Description`.  The last 64 bytes, the archive's comment, are the sha256 of all before them, in hexadecimal.
"""

import hashlib
import importlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from qkd_jax.config import EventConfig, FeatureConfig, from_json, to_json
from qkd_jax.config.fields import Count, Length
from qkd_jax.detector.codes import CELL, GRID, MARGIN, ConvCodes, LSTMCodes
from qkd_jax.detector.detector import Detector
from qkd_jax.errors import InputError

_DIGITS = 64
_FILE, _LONGEST = "detector.json", 1 << 20
_CUT = 6.0
"""What the largest code of a convolution's output stands for, so that ReLU6 cuts there."""

State = tuple[np.ndarray, ...]
"""h and c of each layer in turn, float32 [1, units]."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class Description:
    """What a model's file says of it: a step reads `frames` frames, the next one those `hop` frames later."""

    format: Literal["qkd_jax LiteRT model, version 1"] = "qkd_jax LiteRT model, version 1"
    events: tuple[str, ...]
    features: FeatureConfig
    clip_seconds: Length
    pooling: Literal["last", "mean", "attention"]
    event_config: EventConfig
    frames: Count
    hop: Count


class Runner(NamedTuple):
    """A model that was loaded; it is of one thread.

    `step` takes the state before it and float32 [frames, mels]; it gives the state after it, and float32
    [events]: the logits and the attention, None without one.  `start` is the state before the first step.
    """

    description: Description
    start: State
    step: Callable[[State, np.ndarray], tuple[State, np.ndarray, np.ndarray | None]]

    def run(self, log_mel: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The logits and the attention of each step of a clip `log_mel` [frames, mels]: [steps, events]."""
        about, state = self.description, self.start
        logits, attention = [], []
        for first in range(0, len(log_mel) - about.frames + 1, about.hop):
            state, logit, weight = self.step(state, log_mel[first : first + about.frames])
            logits.append(logit)
            attention.append(weight)

        def table(rows: list[Any]) -> np.ndarray:
            return np.array(rows, np.float32).reshape(-1, len(about.events))

        return table(logits), table(attention) if about.pooling == "attention" else None


def to_litert(detector: Detector) -> bytes:
    """The .tflite file of `detector`; weights of up to 4 bits are kept at 4, others at 8.

    Raises InputError if litert_converter is not installed.
    """
    network = detector.network
    frames, hop = network.receptive_field, network.stride
    inputs: dict[str, tuple[int, ...]] = {"frames": (frames, detector.features.n_mels)}
    outputs = ["logits"] if detector.attention is None else ["logits", "attention"]
    for index in range(network.layers):
        inputs |= dict.fromkeys((f"h{index}", f"c{index}"), (1, network.hidden_size))
        outputs += [f"next_h{index}", f"next_c{index}"]
    description = Description(
        events=detector.events,
        features=detector.features,
        clip_seconds=detector.clip_seconds,
        pooling=network.pooling,
        event_config=detector.event_config,
        frames=frames,
        hop=hop,
    )
    file = io.BytesIO(_flatbuffer(_step(detector), inputs, outputs))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(_FILE), to_json(description))
        archive.comment = bytes(_DIGITS)
    content = file.getvalue()[:-_DIGITS]
    return content + _digest(content)


def load(path: Path) -> Runner:
    """The model in the file at `path`, which `to_litert` made.

    Raises InputError if it can't be read, is not what was made, or if ai_edge_litert is not installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected an exported LiteRT model: {error.strerror or error}") from None
    if data[-_DIGITS:] != _digest(data[:-_DIGITS]):
        raise InputError(f"{path}: expected a LiteRT model as exported, found a damaged or another one")
    with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(_FILE) as file:
        description = from_json(Description, file.read(_LONGEST).decode(), str(path))
    litert = _import("ai_edge_litert.interpreter", "pip install 'qkd_jax[taggers]'")
    interpreter = litert.Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    # Called twice: an interpreter doesn't run while such a runner lives.
    signature = interpreter.get_signature_runner
    inputs = {name: item["index"] for name, item in signature().get_input_details().items()}
    outputs = {name: item["index"] for name, item in signature().get_output_details().items()}
    state = [f"{part}{layer}" for layer in range(len(inputs) // 2) for part in "hc"]
    before, after = [inputs[name] for name in state], [outputs[f"next_{name}"] for name in state]

    def step(state: State, frames: np.ndarray) -> tuple[State, np.ndarray, np.ndarray | None]:
        for index, array in zip([inputs["frames"], *before], [frames, *state]):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        logits = interpreter.get_tensor(outputs["logits"])[0]
        attention = interpreter.get_tensor(outputs["attention"])[0] if "attention" in outputs else None
        return tuple(map(interpreter.get_tensor, after)), logits, attention

    start = tuple(np.zeros_like(interpreter.get_tensor(index)) for index in before)
    return Runner(description, start, step)


def _step(detector: Detector) -> Callable[..., list[Any]]:
    """The function, for JAX to trace, that makes of `frames`, h0, c0, h1 … logits, attention, next_h0 …

    `units` are how many codes a 1 is.
    """
    network, signed = detector.network, 2.0 ** (detector.network.quant.activations - 1)

    def step(frames: Any, *state: Any) -> list[Any]:
        import jax.numpy as jnp

        x, units = (frames - detector.mean[None]) / detector.std[None], 2.0**detector.input
        x = jnp.clip(x, -signed / units, (signed - 1) / units)
        if detector.front:
            x = x[None, :, :, None]
            for index, conv in enumerate(detector.front):
                x, units = _convolve(conv, x, units, network.conv_stride(index), detector)
            x = x.reshape(1, -1)
        after = []
        for layer, h, c in zip(detector.lstm, state[::2], state[1::2]):
            x, c = _advance(layer, h, c, x, units, detector)
            units = signed
            after += [x, c]
        said = [
            _matmul(x, linear.w, linear.multiplier * (signed / 2.0**GRID), network.quant.output)
            + _bias(linear.bias, 2.0**GRID)
            for linear in (detector.output, detector.attention)
            if linear is not None
        ]
        return said + after

    return step


def _convolve(conv: ConvCodes, x: Any, x_units: float, stride: int, detector: Detector) -> tuple[Any, float]:
    import jax

    quant = detector.network.quant
    units = ((1 << quant.activations) - 1) / _CUT
    scale = conv.multiplier * (x_units / units / 2.0**MARGIN)
    if x.shape[-1] == 1:  # a depthwise convolution: there is no kernel for 4 bits, and the fastest is float
        w = _weights(conv.w, scale, 8)
    else:
        x, w = _fake_quant(x, np.zeros(0), 8), _weights(conv.w, scale, quant.weights)
    sums = jax.lax.conv_general_dilated(
        x, w, (stride, 2), ((0, 0), (1, 1)), dimension_numbers=("NHWC", "OHWI", "NHWC")
    )
    return jax.nn.relu6(sums + _bias(conv.bias, units * 2.0**MARGIN)[None, None]), units


def _advance(layer: LSTMCodes, h: Any, c: Any, x: Any, x_units: float, detector: Detector) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    quant = detector.network.quant
    h_units = 2.0 ** (quant.activations - 1)
    from_x = _matmul(x, layer.w_x, layer.multiplier_x * (x_units / 2.0**GRID), quant.weights)
    from_h = _matmul(h, layer.w_h, layer.multiplier_h * (h_units / 2.0**GRID), quant.weights)
    z_f, z_i, z_c, z_o = jnp.split(from_h + (from_x + _bias(layer.bias, 2.0**GRID)), 4, axis=1)
    largest = 2.0 ** (CELL - 1 - layer.cell)
    kept, new = jax.nn.sigmoid(z_f) * c, jax.nn.sigmoid(z_i) * jnp.tanh(z_c)
    c = jnp.clip(_on_grid(kept, layer.cell) + _on_grid(new, layer.cell), -largest, largest)
    return jax.nn.sigmoid(z_o) * jnp.tanh(c), c


def _matmul(x: Any, w: np.ndarray, scale: np.ndarray, bits: int) -> Any:
    import jax

    marked = _fake_quant(x, np.zeros(0), 8), _weights(w, scale, bits)
    return jax.lax.dot_general(*marked, (((1,), (1,)), ((), ())))


def _bias(bias: np.ndarray, units: float) -> np.ndarray:
    return (bias / units).astype(np.float32)[None]


def _weights(codes: np.ndarray, scale: np.ndarray, bits: int) -> Any:
    """The floats codes · scale, outputs first, to be kept as codes, negated where scales are negative."""
    live = abs(scale) >= np.finfo(np.float32).tiny
    w = np.moveaxis(codes * np.where(live, scale, 0), -1, 0)
    return _fake_quant(w, np.where(live, abs(scale), 1), bits)


def _fake_quant(x: Any, scale: np.ndarray, bits: int) -> Any:
    """Mark x to become codes, in units of `scale`, or if that is empty, of what a kernel finds for it."""
    import jax

    return jax.lax.composite(lambda x, **_: x, "quant.fake_quant")(
        x,
        dtype="i4" if bits <= 4 else "i8",
        scale=scale.astype(np.float64),
        zero_point=np.zeros(len(scale), np.int64),
        quantization_dimension=np.int32(0),
        narrow_range=False,
    )


def _flatbuffer(step: Callable[..., Any], inputs: dict[str, tuple[int, ...]], outputs: list[str]) -> bytes:
    """The model of `step`, whose arguments are `inputs`, by name and shape."""
    import jax
    from jax import export

    parts = ("ir", "passmanager", "dialects.stablehlo", "_mlir_libs.converter_api_ext")
    # What it asks for beside itself contradicts tyro, and isn't needed for this.
    remedy = "pip install --no-deps litert-converter"
    ir, passes, stablehlo, converter = (_import(f"litert_converter.mlir.{part}", remedy) for part in parts)
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in inputs.values()]
    exported = export.export(jax.jit(step), platforms=["cpu"])(*shapes)
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = stablehlo.deserialize_portable_artifact(context, exported.mlir_module_serialized)
        converter.set_signature(module.operation, "step", list(inputs), outputs)
        config = converter.ConvertToTFLConfig()
        config.model_origin_framework, config.strict_qdq_mode = "JAX", True
        converter.run_convert_to_tfl_passes(module, passes.PassManager(), config)
        return converter.export_flatbuffer_to_bytes(module.operation)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _import(name: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"LiteRT models need {name.split('.')[0]}: {remedy}") from None


def _on_grid(x: Any, bits: int) -> Any:
    """The multiple of 2^-bits that is nearest to x, half up, as the integers' shifts round."""
    import jax.numpy as jnp

    return jnp.floor(x * 2.0**bits + 0.5) * 2.0**-bits
