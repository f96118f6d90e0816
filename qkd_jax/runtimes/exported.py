"""Exported detectors, of whatever format, as functions of waveforms.

Each carries a checksum, which tells what is damaged from what was exported.  It is no signature: whoever
changes a file on purpose can make it right again.  So a .onnx or .tflite is first tried in a process of its
own; a .h, which is compiled and run, can do what its maker wants: open those whose maker you trust.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from qkd_jax.audio import log_mel_numpy as front_end
from qkd_jax.config import FeatureConfig, from_json
from qkd_jax.config.fields import Length
from qkd_jax.detector import file as artefact
from qkd_jax.detector import reference
from qkd_jax.detector.codes import GRID
from qkd_jax.errors import InputError, first_line
from qkd_jax.runtimes import c_run, litert, onnx
from qkd_jax.system import isolation as trial

_TRIED = {".onnx": "ONNX Runtime", ".tflite": "LiteRT"}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class _Description:
    """What an ONNX model's metadata say of it, each a value in JSON."""

    events: tuple[str, ...]
    features: FeatureConfig
    clip_seconds: Length


class Exported(NamedTuple):
    """What a file holds; `clip_logits`, of one thread: waveform float32 [samples] -> logits float32 [events].

    It takes samples of full scale 1 at the rate of `features`, `clip_seconds` of them.
    """

    events: tuple[str, ...]
    features: FeatureConfig
    clip_seconds: float
    clip_logits: Callable[[np.ndarray], np.ndarray]


def open_exported(path: Path) -> Exported:
    """Open the detector in the .safetensors, .onnx, .tflite or .h file at `path`.

    Raises InputError if it is damaged or no such detector, if it makes ONNX Runtime or LiteRT crash or
    hang, or if what runs it is not installed.
    """
    if path.suffix in _TRIED:
        trial.try_apart(__name__, path, runtime=_TRIED[path.suffix])
    return open_untried(path)


def run_once(path: Path) -> None:
    """Open the detector at `path` and run it on noise, in this process, which may crash."""
    exported = open_untried(path)
    samples = round(exported.clip_seconds * exported.features.sample_rate)
    exported.clip_logits(np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32))


def open_untried(path: Path) -> Exported:
    """As `open_exported`, in this process at once, which may crash."""
    opener = {".safetensors": _numpy, ".onnx": _onnx, ".tflite": _litert, ".h": _c}.get(path.suffix)
    if opener is None:
        raise InputError(f"{path}: expected a detector in .safetensors, .onnx, .tflite or .h")
    with _named(path):
        exported = opener(path)

    def clip_logits(waveform: np.ndarray) -> np.ndarray:
        with _named(path):
            logits = exported.clip_logits(waveform)
            if (found := np.shape(logits)) != (len(exported.events),):
                raise InputError(f"{path}: expected logits of {len(exported.events)} events, found {found}")
        return logits

    return exported._replace(clip_logits=clip_logits)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Says which file it is when a runtime meets what isn't as it was exported, its checksum made right."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of a class of its own for each fault
        raise InputError(f"{path}: expected a detector as exported: {first_line(error)}") from None


def _numpy(path: Path) -> Exported:
    detector = artefact.load(path)

    def clip_logits(waveform: np.ndarray) -> np.ndarray:
        log_mel = front_end.log_mel(detector.features, waveform)
        return reference.clip_logits(detector, reference.input_codes(detector, log_mel))

    return Exported(detector.events, detector.features, detector.clip_seconds, clip_logits)


def _onnx(path: Path) -> Exported:
    session = open_session(path)
    about = session.get_modelmeta().custom_metadata_map
    if about.get("form") != "clip":
        raise InputError(f"{path}: expected a model of whole clips, found one of single steps")
    fields = ", ".join(f'"{name}": {about[name]}' for name in ("events", "features", "clip_seconds"))
    said = from_json(_Description, f"{{{fields}}}", str(path))

    def clip_logits(waveform: np.ndarray) -> np.ndarray:
        return session.run(["logits"], {"waveform": waveform})[0]

    return Exported(said.events, said.features, said.clip_seconds, clip_logits)


def open_session(path: Path) -> Any:
    """The onnxruntime.InferenceSession, of one thread, of the model that `onnx.save` wrote to `path`.

    Raises InputError if it is damaged, or if onnxruntime is not installed.
    """
    model = onnx.load(path)
    try:
        import onnxruntime
    except ImportError:
        raise InputError("onnxruntime: needed to run .onnx: pip install 'qkd_jax[taggers]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _litert(path: Path) -> Exported:
    runner = litert.load(path)
    about = runner.description

    def clip_logits(waveform: np.ndarray) -> np.ndarray:
        outputs, attention = runner.run(front_end.log_mel(about.features, waveform))
        weights = None if attention is None else attention * 2.0**GRID
        return reference.pooled(about.pooling, outputs * 2.0**GRID, weights)

    return Exported(about.events, about.features, about.clip_seconds, clip_logits)


def _c(path: Path) -> Exported:
    runner = c_run.compile_c(path)
    about = runner.description
    return Exported(about.events, about.features, about.clip_seconds, runner.clip_logits)
