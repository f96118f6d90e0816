"""Runtimes in which a detector runs, each a module of this package; it is imported only when used.

To add a runtime, add a module, a line to `_RUNTIMES`, and its name to `config.fields` (CONTRIBUTING.md).  The
module defines

    open_stream(detector: Detector) -> Runtime
        `detector` on a stream.  From the input codes on, every runtime but LiteRT computes NumPy's codes.

and, if the runtime has a file format,

    write(detector: Detector, path: Path, provenance: Mapping[str, str]) -> str
        Writes the file, and returns the sizes of its parts as text, or "".
    open_clip(path: Path) -> Exported
        Opens the file as a function of whole clips, in this process.

Each raises InputError if a library is missing, with the command that installs it.

Exported files have a checksum, which detects damage.  It is not a signature: anyone can
change a file on purpose and correct the checksum.  Libraries that a hostile file could crash therefore first
open it in a process of their own.  A .h is compiled and run, and can do anything: only open those you trust.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from qkd_jax.config.fields import FormatName, RuntimeName
from qkd_jax.detector.detector import Detector
from qkd_jax.detector.stream import Runtime
from qkd_jax.errors import InputError, naming
from qkd_jax.runtimes.common import Exported
from qkd_jax.system.isolation import try_apart


class _File(NamedTuple):
    """A runtime's file format, and the native `library` that a hostile file could crash, if any."""

    format: FormatName
    suffix: str
    library: str = ""
    tolerance: float = 1e-3  # the last bits of log-mel energies sometimes change a code


_RUNTIMES: dict[RuntimeName, _File | None] = {
    "numpy": _File("safetensors", ".safetensors"),
    "jax": None,
    "onnx": _File("onnx", ".onnx", "ONNX Runtime"),
    "litert": _File("litert", ".tflite", "LiteRT", tolerance=0.02),  # rounds activations by its own rule
    "c": _File("c", ".h"),
}
_FILES = {name: file for name, file in _RUNTIMES.items() if file is not None}

FORMATS: dict[FormatName, str] = {file.format: file.suffix for file in _FILES.values()}
"""The suffix of each file format."""
TOLERANCES = {file.suffix: file.tolerance for file in _FILES.values()}
"""Per suffix the largest mean difference of probabilities from the reference."""


def open_stream(name: RuntimeName, detector: Detector) -> Runtime:
    """`detector` in the runtime `name`, for streams; raises InputError if a library or compiler is missing.

    C and ONNX compute log-mel energies by themselves, the others with NumPy.
    """
    runtime: Runtime = _module(name).open_stream(detector)
    return runtime


def write(
    form: FormatName, detector: Detector, path: Path, provenance: Mapping[str, str] = {}, **options: Any
) -> str:
    """Write `detector` to `path` in a format; return the sizes of its parts as text, or "".

    For onnx, the model of single steps is written beside `path`, as STEM-step.onnx.  safetensors
    stores `provenance`, the detector's origin.  `options`: c takes `name`, the prefix of names in the header.
    Raises InputError if the detector can't be written in the format, or a library is missing.
    """
    [runtime] = [name for name, file in _FILES.items() if file.format == form]
    parts: str = _module(runtime).write(detector, path, provenance, **options)
    return parts


def open_clip(path: Path) -> Exported:
    """Open the detector in the .safetensors, .onnx, .tflite or .h file at `path`.

    Raises InputError if it is damaged or not an exported detector, if it crashes or hangs ONNX Runtime or
    LiteRT, or if a library or compiler is missing.
    """
    if library := _file_of(path)[1].library:
        try_apart(__name__, path, runtime=library)
    return open_unguarded(path)


def run_once(path: Path) -> None:
    """Open the detector at `path` and run it on noise, in this process, which may crash; see `try_apart`."""
    exported = open_unguarded(path)
    samples = round(exported.clip_seconds * exported.features.sample_rate)
    exported.clip_logits(np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32))


def open_unguarded(path: Path) -> Exported:
    """As `open_clip`, but at once in this process, which a hostile file may crash."""
    module = _module(_file_of(path)[0])
    # Libraries raise exceptions of their own for files that were changed and given a correct checksum.
    with naming(path, "a detector as exported"):
        exported: Exported = module.open_clip(path)

    def clip_logits(waveform: np.ndarray) -> np.ndarray:
        with naming(path, "a detector as exported"):
            logits = exported.clip_logits(waveform)
            if (found := np.shape(logits)) != (len(exported.events),):
                raise InputError(f"{path}: expected logits of {len(exported.events)} events, found {found}")
        return logits

    return exported._replace(clip_logits=clip_logits)


def _file_of(path: Path) -> tuple[RuntimeName, _File]:
    for name, file in _FILES.items():
        if file.suffix == path.suffix:
            return name, file
    *suffixes, last = FORMATS.values()
    raise InputError(f"{path}: expected a detector in {', '.join(suffixes)} or {last}")


def _module(name: RuntimeName) -> ModuleType:
    return importlib.import_module(f"qkd_jax.runtimes.{name}")
