"""LiteRT: a model of one step of the LSTM, with the detector's codes as weights and float activations.

The inputs are `frames`, the log-mel energies that a step reads, float32 [frames, mels], and the state
before the step, `h<k>` and `c<k>` of layer k, float32 [1, hidden_size], zeros at the start.  The outputs are
`logits`, with attention the logarithm of its weight, `attention`, both float32 [1, events], and the state
after the step, `next_h<k>` and `next_c<k>`.

The weights and their scales are the detector's, but LiteRT's kernels round activations to 8 bits in their own
way: the results are close to those of the integer-only scheme, not equal.

A zip archive follows the model, as LiteRT's metadata do; it holds `detector.json`, a `Description`.  The
last 64 bytes, the archive's comment, are the SHA-256 of everything before, in hexadecimal.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic.dataclasses import dataclass

from qkd_jax.audio.log_mel_numpy import log_mel
from qkd_jax.config import FeatureConfig, from_json, to_json
from qkd_jax.config.fields import STRICT, Count, Length
from qkd_jax.detector import reference
from qkd_jax.detector.codes import CELL_BITS, CONV_GUARD_BITS, LOGIT_EXPONENT, ConvCodes, LSTMCodes
from qkd_jax.detector.container import StoredEventConfig
from qkd_jax.detector.detector import Detector
from qkd_jax.detector.stream import LSTMState, Runtime
from qkd_jax.errors import InputError
from qkd_jax.runtimes.common import Exported, read_exported, step_by_step
from qkd_jax.system.files import whole_file
from qkd_jax.system.libraries import optional

_DIGITS = 64
_FILE, _LONGEST = "detector.json", 1 << 20
_RELU6 = 6.0
"""Value of a convolution's largest output code, so that ReLU6 clips where the codes do."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Description:
    """The detector in a model's file: a step reads `frames` frames, and the next step starts `hop` later."""

    format: Literal["qkd_jax LiteRT model, version 1"] = "qkd_jax LiteRT model, version 1"
    events: tuple[str, ...]
    features: FeatureConfig
    clip_seconds: Length
    pooling: Literal["last", "mean", "attention"]
    event_config: StoredEventConfig
    frames: Count
    hop: Count


class Runner(NamedTuple):
    """A loaded model, for a single thread.

    `step` takes the state before a step and float32 [frames, mels]; it returns the state after it, and the
    logits and the attention, float32 [events], None without attention.  `start` is the state before the first
    step.  A state is h and c of each layer in turn, float32 [1, hidden_size].
    """

    description: Description
    start: LSTMState
    step: Callable[[LSTMState, np.ndarray], tuple[LSTMState, np.ndarray, np.ndarray | None]]

    def run(self, log_mel: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The logits and the attention [steps, events] at each step of a clip `log_mel` [frames, mels]."""
        about, state = self.description, self.start
        logits, attention = [], []
        for first in range(0, len(log_mel) - about.frames + 1, about.hop):
            state, logit, weight = self.step(state, log_mel[first : first + about.frames])
            logits.append(logit)
            attention.append(weight)

        def table(rows: list[Any]) -> np.ndarray:
            return np.array(rows, np.float32).reshape(-1, len(about.events))

        return table(logits), table(attention) if about.pooling == "attention" else None


def write(detector: Detector, path: Path, provenance: Mapping[str, str] = {}) -> str:
    """Write `detector` to a .tflite file."""
    content = to_litert(detector)
    with whole_file(path) as file:
        file.write(content)
    return ""


def open_clip(path: Path) -> Exported:
    """Open the model at `path` as a function of whole clips."""
    runner = load(path)
    about = runner.description

    def clip_logits(waveform: np.ndarray) -> np.ndarray:
        outputs, attention = runner.run(log_mel(about.features, waveform))
        one = 2.0**LOGIT_EXPONENT
        return reference.pooled(about.pooling, outputs * one, None if attention is None else attention * one)

    return Exported(about.events, about.features, about.clip_seconds, clip_logits)


def open_stream(detector: Detector) -> Runtime:
    """`detector` on a stream, by its model."""
    runner = open_model(to_litert(detector), "LiteRT")
    advance_frames = step_by_step(
        lambda state, frames: runner.step(state, frames)[:2],
        detector.network.receptive_field,
        detector.network.stride,
    )

    def advance(state: LSTMState, samples: np.ndarray) -> tuple[LSTMState, np.ndarray]:
        return advance_frames(state, log_mel(detector.features, samples))

    return Runtime(detector, runner.start, advance)


def to_litert(detector: Detector) -> bytes:
    """The .tflite file of `detector`; weights of up to 4 bits are stored in 4, others in 8.

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
    """The model in the file at `path`; raises InputError as `open_model`, or if it can't be read."""
    return open_model(read_exported(path, "an exported LiteRT model"), path)


def open_model(data: bytes, where: object) -> Runner:
    """The model that `to_litert` made.

    Raises InputError, which names `where`, if it is damaged, or if ai_edge_litert is not installed.
    """
    if data[-_DIGITS:] != _digest(data[:-_DIGITS]):
        raise InputError(f"{where}: expected a LiteRT model as exported, found damaged or other content")
    with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(_FILE) as file:
        description = from_json(Description, file.read(_LONGEST).decode(), str(where))
    litert = optional("ai_edge_litert.interpreter", "LiteRT models", "pip install 'qkd_jax[taggers]'")
    interpreter = litert.Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    # Not kept in a variable: an interpreter can't run while a signature runner refers to its tensors.
    signature = interpreter.get_signature_runner
    inputs = {name: item["index"] for name, item in signature().get_input_details().items()}
    outputs = {name: item["index"] for name, item in signature().get_output_details().items()}
    names = [f"{part}{layer}" for layer in range(len(inputs) // 2) for part in "hc"]
    before, after = [inputs[name] for name in names], [outputs[f"next_{name}"] for name in names]

    def step(state: LSTMState, frames: np.ndarray) -> tuple[LSTMState, np.ndarray, np.ndarray | None]:
        for index, array in zip([inputs["frames"], *before], [frames, *state]):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        logits = interpreter.get_tensor(outputs["logits"])[0]
        attention = interpreter.get_tensor(outputs["attention"])[0] if "attention" in outputs else None
        return tuple(map(interpreter.get_tensor, after)), logits, attention

    start = tuple(np.zeros_like(interpreter.get_tensor(index)) for index in before)
    return Runner(description, start, step)


def _step(detector: Detector) -> Callable[..., list[Any]]:
    """The function, for JAX to trace, from `frames`, h0, c0, h1 … to logits, attention, next_h0 …

    Here and below, `resolution` is the number of codes per 1, the inverse of a scale.
    """
    network, signed = detector.network, 2.0 ** (detector.network.quant.activations - 1)

    def step(frames: Any, *state: Any) -> list[Any]:
        import jax.numpy as jnp

        x = (frames - detector.mean[None]) / detector.std[None]
        resolution = 2.0**detector.input_exponent
        x = jnp.clip(x, -signed / resolution, (signed - 1) / resolution)
        if detector.front:
            x = x[None, :, :, None]
            for index, conv in enumerate(detector.front):
                x, resolution = _convolve(conv, x, resolution, network.conv_stride(index), detector)
            x = x.reshape(1, -1)
        after = []
        for layer, h, c in zip(detector.lstm, state[::2], state[1::2]):
            x, c = _advance(layer, h, c, x, resolution, detector)
            resolution = signed
            after += [x, c]
        logits = [
            _matmul(x, linear.w, linear.multiplier * (signed / 2.0**LOGIT_EXPONENT), network.quant.output)
            + _bias(linear.bias, 2.0**LOGIT_EXPONENT)
            for linear in (detector.output, detector.attention)
            if linear is not None
        ]
        return logits + after

    return step


def _convolve(
    conv: ConvCodes, x: Any, x_resolution: float, stride: int, detector: Detector
) -> tuple[Any, float]:
    import jax

    quant = detector.network.quant
    resolution = ((1 << quant.activations) - 1) / _RELU6
    scale = conv.multiplier * (x_resolution / resolution / 2.0**CONV_GUARD_BITS)
    if x.shape[-1] == 1:  # depthwise: LiteRT has no kernel for 4 bits, and its float kernel is the fastest
        w = _weights(conv.w, scale, 8)
    else:
        x, w = _fake_quant(x, _PER_VECTOR, 8), _weights(conv.w, scale, quant.weights)
    sums = jax.lax.conv_general_dilated(
        x, w, (stride, 2), ((0, 0), (1, 1)), dimension_numbers=("NHWC", "OHWI", "NHWC")
    )
    return jax.nn.relu6(sums + _bias(conv.bias, resolution * 2.0**CONV_GUARD_BITS)[None, None]), resolution


def _advance(
    layer: LSTMCodes, h: Any, c: Any, x: Any, x_resolution: float, detector: Detector
) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    quant = detector.network.quant
    h_resolution = 2.0 ** (quant.activations - 1)
    from_x = _matmul(x, layer.w_x, layer.multiplier_x * (x_resolution / 2.0**LOGIT_EXPONENT), quant.weights)
    from_h = _matmul(h, layer.w_h, layer.multiplier_h * (h_resolution / 2.0**LOGIT_EXPONENT), quant.weights)
    z_f, z_i, z_c, z_o = jnp.split(from_h + (from_x + _bias(layer.bias, 2.0**LOGIT_EXPONENT)), 4, axis=1)
    exponent = layer.cell_exponent
    largest = 2.0 ** (CELL_BITS - 1 - exponent)
    remembered, added = jax.nn.sigmoid(z_f) * c, jax.nn.sigmoid(z_i) * jnp.tanh(z_c)
    # Rounded as the integers are: over a clip, unrounded cells would drift away from them.
    c = jnp.clip(_rounded(remembered, exponent) + _rounded(added, exponent), -largest, largest)
    return jax.nn.sigmoid(z_o) * jnp.tanh(c), c


def _matmul(x: Any, w: np.ndarray, scale: np.ndarray, bits: int) -> Any:
    import jax

    marked = _fake_quant(x, _PER_VECTOR, 8), _weights(w, scale, bits)
    return jax.lax.dot_general(*marked, (((1,), (1,)), ((), ())))


def _bias(bias: np.ndarray, resolution: float) -> np.ndarray:
    return (bias / resolution).astype(np.float32)[None]


def _weights(codes: np.ndarray, scale: np.ndarray, bits: int) -> Any:
    """Floats codes · scale, outputs first, to be stored as codes, negated where scales are negative."""
    live = abs(scale) >= np.finfo(np.float32).tiny
    w = np.moveaxis(codes * np.where(live, scale, 0), -1, 0)
    return _fake_quant(w, np.where(live, abs(scale), 1), bits)


_PER_VECTOR = np.zeros(0)
"""No static scale: the kernel computes one from each vector."""


def _fake_quant(x: Any, scale: np.ndarray, bits: int) -> Any:
    """Mark x to become codes of `scale`, one for each output, or `_PER_VECTOR`."""
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
    """The model of `step`, with names and shapes of its arguments, and names of its results."""
    import jax
    from jax import export

    parts = ("ir", "passmanager", "dialects.stablehlo", "_mlir_libs.converter_api_ext")
    # Its dependencies contradict pydantic's, and aren't needed here.
    remedy = "pip install --no-deps litert-converter"
    ir, passes, stablehlo, converter = (
        optional(f"litert_converter.mlir.{part}", "LiteRT models", remedy) for part in parts
    )
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


def _rounded(x: Any, exponent: int) -> Any:
    """Round x to a multiple of 2^-exponent, half up, as the integers' shifts round."""
    import jax.numpy as jnp

    return jnp.floor(x * 2.0**exponent + 0.5) * 2.0**-exponent
