"""A detector in each runtime on one core, from the samples of a clip to logits, and the bytes of its file."""

import importlib.util
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.speed.detector import JAX, LITERT, NUMPY, ONNX, untrained  # first: it sets JAX's platform

# isort: split
import jax
import numpy as np

from benchmarks.speed.measure import Row, agree, beside, in_turns
from qkd_jax.audio import log_mel_numpy
from qkd_jax.audio.log_mel import log_mel
from qkd_jax.commands.cli import load_preset
from qkd_jax.config import FeatureConfig, LSTMConfig, QuantConfig
from qkd_jax.detector.detector import Detector
from qkd_jax.runtimes import open_clip, write
from qkd_jax.runtimes.jax import to_jax

SECONDS, RATE = 10, 16_000
CLOSE = 0.02
"""Front ends differ in a float's last bit, which can turn an input's code; LiteRT has its own rounding."""
FORMATS: dict[str, tuple[Any, str]] = {
    **{NUMPY: ("safetensors", ".safetensors"), ONNX: ("onnx", ".onnx")},
    **{LITERT: ("litert", ".tflite"), "C": ("c", ".h")},
}
"""By runtime, the format and suffix of its file."""


def noise() -> np.ndarray:
    """SECONDS of noise whose level changes five times per second, float32 [samples]."""
    rng = np.random.default_rng(0)
    level = 10 ** rng.uniform(-3, -0.5, 5 * SECONDS)  # with a constant level, logits stay near 0
    return (rng.normal(0, 1, SECONDS * RATE) * level.repeat(RATE // 5)).astype(np.float32)


def detectors() -> dict[str, Detector]:
    """Untrained detectors of the paper's size and of preset `small`, calibrated on noise."""
    networks: dict[str, Any] = {
        f"256 units, {bits} bits": LSTMConfig(quant=QuantConfig.integer(bits)) for bits in (8, 4)
    }
    networks["small, 4 bits"] = load_preset("small").models["distilled-4"].network
    energies = log_mel_numpy.log_mel(FeatureConfig(), noise())
    return {name: untrained(network, energies, normed=True)[0] for name, network in networks.items()}


def ways(detector: Detector, folder: Path) -> dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]]:
    """By runtime, waveform to logits, and the bytes of its file in words; LiteRT only with its converter."""
    logits = to_jax(detector)
    compiled = jax.jit(lambda waveform: logits(log_mel(waveform, detector.features)[None])[0])
    each: dict[str, Any] = {}
    for runtime, (form, suffix) in FORMATS.items():
        if runtime != LITERT or importlib.util.find_spec("litert_converter"):
            path = folder / f"detector{suffix}"
            write(form, detector, path)
            parts = re.findall(r"(?:Flash|RAM): \d+ bytes", path.read_text()) if form == "c" else []
            size = ", ".join(parts) or f"{path.stat().st_size:,} bytes"
            each[runtime] = open_clip(path).clip_logits, f"; {size}"
    return each | {JAX: (lambda waveform: np.asarray(compiled(waveform)), "")}


def rows(rounds: int) -> Iterator[Row]:
    """A row for each detector in each runtime, beside NumPy."""
    waveform = noise()
    for name, detector in detectors().items():
        with tempfile.TemporaryDirectory() as folder:
            by_runtime = ways(detector, Path(folder))
            calls = {runtime: partial(way, waveform) for runtime, (way, _) in by_runtime.items()}
            expected, took = calls[NUMPY](), in_turns(calls, rounds)
            for runtime, call in calls.items():
                off = agree(runtime, expected, call(), np.inf if runtime == LITERT else CLOSE)
                size, pair = by_runtime[runtime][1], (runtime, None if runtime == NUMPY else NUMPY)
                times = f"{SECONDS / np.median(took[runtime]):,.0f} times real time{size}"
                yield from beside(name, took, {pair: off}, note=lambda _, times=times: times)  # type: ignore[misc]
