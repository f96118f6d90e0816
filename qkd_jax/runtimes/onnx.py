"""ONNX Runtime: models of whole clips and of single steps, from waveform to probabilities."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from qkd_jax.config import FeatureConfig, from_json, step_samples
from qkd_jax.config.fields import STRICT, Length
from qkd_jax.detector.detector import Detector
from qkd_jax.detector.stream import LSTMState, Runtime, in_numpy
from qkd_jax.errors import InputError
from qkd_jax.runtimes.common import Exported, read_exported, step_by_step
from qkd_jax.runtimes.onnx_graph import checksum, clip_model, sizes, step_model
from qkd_jax.system.files import whole_file
from qkd_jax.system.libraries import onnx_session


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Description:
    """A detector in a model's metadata; each value is JSON."""

    events: tuple[str, ...]
    features: FeatureConfig
    clip_seconds: Length


def write(detector: Detector, path: Path, provenance: Mapping[str, str] = {}) -> str:
    """Write the model of whole clips to `path`, and that of single steps to STEM-step.onnx beside it."""
    model = clip_model(detector)
    save(model, path)
    save(step_model(detector), path.with_name(f"{path.stem}-step.onnx"))
    return ", ".join(f"{part.replace('_', ' ')} {size:,}" for part, size in sizes(model).items())


def open_clip(path: Path) -> Exported:
    """Open the model of whole clips at `path`."""
    session = onnx_session(load(path), path)
    metadata = session.get_modelmeta().custom_metadata_map
    if metadata.get("form") != "clip":
        raise InputError(f"{path}: expected a model of whole clips, found one of single steps")
    fields = ", ".join(f'"{name}": {metadata[name]}' for name in ("events", "features", "clip_seconds"))
    about = from_json(_Description, f"{{{fields}}}", str(path))

    def clip_logits(waveform: np.ndarray) -> np.ndarray:
        logits: np.ndarray = session.run(["logits"], {"waveform": waveform})[0]
        return logits

    return Exported(about.events, about.features, about.clip_seconds, clip_logits)


def open_stream(detector: Detector) -> Runtime:
    """`detector` on a stream, by its model of single steps."""
    return _stream(detector, onnx_session(step_model(detector).SerializeToString(), "ONNX models"))


def open_step(detector: Detector, path: Path) -> Runtime:
    """As `open_stream`, by the model of single steps of `detector` that `write` wrote to `path`."""
    return _stream(detector, onnx_session(load(path), path))


def _stream(detector: Detector, session: Any) -> Runtime:
    names = [item.name for item in session.get_inputs()[1:]]
    outputs = ["logits", *(f"next_{name}" for name in names)]

    def step(state: LSTMState, waveform: np.ndarray) -> tuple[LSTMState, np.ndarray]:
        logits, *after = session.run(outputs, {"waveform": waveform, **dict(zip(names, state))})
        return tuple(after), logits

    samples = step_samples(detector.features, detector.network)
    return Runtime(detector, in_numpy(detector).start, step_by_step(step, *samples))


def save(model: Any, path: Path) -> None:
    """Write an onnx.ModelProto to `path`, with a checksum in its metadata; raises InputError if it can't."""
    content = model.SerializeToString()
    with whole_file(path) as file:
        file.write(content + checksum(content))


def load(path: Path) -> bytes:
    """The content that `save` wrote to `path`, for onnxruntime.InferenceSession or onnx.load_from_string.

    Raises InputError if it can't be read or is damaged.
    """
    data = read_exported(path, "an exported ONNX model")
    content = data[: -len(checksum(b""))]
    if data != content + checksum(content):
        raise InputError(f"{path}: expected an ONNX model as exported, found damaged or other content")
    return data
