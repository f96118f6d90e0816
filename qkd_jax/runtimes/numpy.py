"""NumPy, which computes the definition itself, `detector.reference`; its file is .safetensors."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qkd_jax.audio.log_mel_numpy import log_mel
from qkd_jax.detector import reference
from qkd_jax.detector.detector import Detector
from qkd_jax.detector.file import load, save
from qkd_jax.detector.stream import in_numpy
from qkd_jax.runtimes.common import Exported

open_stream = in_numpy


def write(detector: Detector, path: Path, provenance: Mapping[str, str] = {}) -> str:
    """Write `detector` and its `provenance` to a .safetensors file."""
    save(detector, path, provenance)
    return ""


def open_clip(path: Path) -> Exported:
    """Open the detector in the .safetensors file at `path`."""
    detector = load(path)

    def clip_logits(waveform: np.ndarray) -> np.ndarray:
        codes = reference.input_codes(detector, log_mel(detector.features, waveform))
        return reference.clip_logits(detector, codes)

    return Exported(detector.events, detector.features, detector.clip_seconds, clip_logits)
