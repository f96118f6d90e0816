"""How fast a detector is in each runtime, and how many bytes its files take.

    python -m benchmarks.runtimes [--model FILE.safetensors …] [--rounds 15] [--page]

Without a model, untrained detectors of the paper's size and of preset `small` are measured: the cost of a
step doesn't depend on training.  All runtimes process the same noise on one thread, in turns, so that other
load slows them all.  `--page` fills the marked parts of docs/results/runtimes.md.
"""

import importlib.util
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

# One thread for NumPy and for JAX, set before either is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import DASH, EVENTS, RESULTS, argument_parser, fill, markdown, processor, versions
from qkd_jax.audio.log_mel import log_mel
from qkd_jax.commands.cli import load_preset, run_command
from qkd_jax.config import FeatureConfig, LSTMConfig, QuantConfig
from qkd_jax.detector import file
from qkd_jax.detector.detector import Detector
from qkd_jax.errors import InputError
from qkd_jax.models.build import build_model
from qkd_jax.models.common import with_norm
from qkd_jax.models.lstm_integer import calibrate, to_detector
from qkd_jax.runtimes import open_clip, write
from qkd_jax.runtimes.jax import to_jax
from qkd_jax.runtimes.onnx_graph import clip_model, sizes, step_model

SECONDS = 10
CLOSE = (
    0.02  # relative to the largest; front ends differ in a float's last bit, which can turn an input's code
)
NUMPY, JAX, LITERT = "NumPy", "JAX", "LiteRT"
FORMATS = {
    NUMPY: ("safetensors", ".safetensors"),
    "ONNX Runtime": ("onnx", ".onnx"),
    LITERT: ("litert", ".tflite"),
    "C": ("c", ".h"),
}

ClipLogits = Callable[[np.ndarray], np.ndarray]
"""A function of a waveform float32 [samples] to logits float32 [events]."""


class Times(NamedTuple):
    """Seconds of each round, of CPU and wall-clock time, and the difference of the logits from NumPy's."""

    cpu: list[float]
    wall: list[float]
    difference: float


def untrained(network: LSTMConfig, features: FeatureConfig = FeatureConfig()) -> Detector:
    """The detector of an untrained `network`, calibrated on noise."""
    energies = log_mel(jnp.asarray(noise(features.sample_rate))[None], features)
    variables = dict(jax.jit(build_model(network, len(EVENTS)).init)(jax.random.key(0), energies))
    variables = with_norm(variables, energies.mean(axis=(0, 1)), energies.std(axis=(0, 1)))
    variables |= {"exponents": calibrate(network, variables, [energies])}
    return to_detector(network, variables, features=features, events=EVENTS, clip_seconds=float(SECONDS))


def noise(sample_rate: int) -> np.ndarray:
    """SECONDS of noise whose level changes five times per second, float32 [samples]."""
    rng = np.random.default_rng(0)
    level = 10 ** rng.uniform(-3, -0.5, 5 * SECONDS)  # with a constant level, logits stay near 0
    return (rng.normal(0, 1, SECONDS * sample_rate) * level.repeat(sample_rate // 5)).astype(np.float32)


def written(detector: Detector, folder: Path) -> dict[str, Path]:
    """The file for each runtime except JAX, which needs none, and LiteRT without its converter."""
    files = {}
    for runtime, (form, suffix) in FORMATS.items():
        if runtime != LITERT or importlib.util.find_spec("litert_converter"):
            files[runtime] = folder / f"detector{suffix}"
            write(form, detector, files[runtime])  # type: ignore[arg-type]
    return files


def in_jax(detector: Detector) -> ClipLogits:
    """The detector in JAX, including the front end, as one program."""
    logits = to_jax(detector)
    compiled = jax.jit(lambda waveform: logits(log_mel(waveform, detector.features)[None])[0])
    return lambda waveform: np.asarray(compiled(waveform))


def timed(runtimes: Mapping[str, ClipLogits], waveform: np.ndarray, rounds: int) -> dict[str, Times]:
    """Run `runtimes` on `waveform` in turns.

    Raises InputError if logits differ from NumPy's, except LiteRT's, which has its own rounding.
    """
    expected, times = runtimes[NUMPY](waveform), {}
    for name, clip_logits in runtimes.items():  # also compiles
        off = float(abs(clip_logits(waveform) - expected).max())
        if name != LITERT and not off <= CLOSE * abs(expected).max():
            raise InputError(f"{name}: expected NumPy's logits, found a difference of {off:.2g}")
        times[name] = Times([], [], off)
    for _ in range(rounds):
        for name, clip_logits in runtimes.items():
            wall, cpu = time.perf_counter(), time.process_time()
            clip_logits(waveform)
            times[name].cpu.append(time.process_time() - cpu)
            times[name].wall.append(time.perf_counter() - wall)
    return times


def time_rows(detector: str, times: Mapping[str, Times]) -> list[list[str]]:
    """The rows of a detector in the table of times."""
    rows = []
    for runtime in (NUMPY, JAX, *(name for name in FORMATS if name != NUMPY)):
        if runtime not in times:
            rows.append([detector, runtime, *[DASH] * 5])
            continue
        cpu, wall, difference = times[runtime]
        low, middle, high = np.percentile(cpu, [25, 50, 75]) * 1e3
        quartiles, clock = f"{low:.1f} to {high:.1f}", f"{np.median(wall) * 1e3:.1f}"
        off = f"{difference:.1g}" if difference else "0"
        real_time = f"{SECONDS * 1e3 / middle:,.0f}"
        rows.append([detector, runtime, f"{middle:.1f}", quartiles, clock, real_time, off])
    return rows


def byte_row(name: str, detector: Detector, files: Mapping[str, Path]) -> list[str]:
    """The row of a detector in the table of bytes."""
    parts = sizes(clip_model(detector))
    step = sum(sizes(step_model(detector)).values())
    header = files["C"].read_text()
    memory = [re.search(rf"\b{kind}: (\d+) bytes", header) for kind in ("Flash", "RAM")]
    whole = [files[NUMPY].stat().st_size, files["ONNX Runtime"].stat().st_size]
    numbers = [*whole, parts["front_end"], parts["graph"], parts["weights"], step]
    tflite = f"{files[LITERT].stat().st_size:,}" if LITERT in files else DASH
    return [
        name,
        *(f"{number:,}" for number in numbers),
        tflite,
        *(f"{int(match[1]):,}" if match else DASH for match in memory),
    ]


def detectors(models: list[Path]) -> dict[str, Detector]:
    """The detectors in the files `models`, or untrained ones, by their names in the tables.

    Raises InputError for files of the same name.
    """
    if models:
        loaded = {model.stem: file.load(model) for model in models}
        if len(loaded) < len(models):
            names = ", ".join(map(str, models))
            raise InputError(f"--model: expected files of different names, got {names}")
        return loaded
    networks = {f"256 units, {bits} bits": LSTMConfig(quant=QuantConfig.integer(bits)) for bits in (8, 4)}
    networks["small, 4 bits"] = load_preset("small").models["distilled-4"].network  # type: ignore[assignment]
    return {name: untrained(network) for name, network in networks.items()}


def machine() -> str:
    """The machine, libraries and compiler."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    output = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    libraries = versions("numpy", "jax", "onnxruntime", "ai-edge-litert")
    return f"{processor()}; Python {platform.python_version()}, {libraries}, {output.splitlines()[0]}."


def parts(measured: Mapping[str, Detector], rounds: int) -> dict[str, str]:
    """The marked parts of the page."""
    times, bytes_ = [], []
    for name, detector in measured.items():
        with tempfile.TemporaryDirectory() as folder:
            files = written(detector, Path(folder))
            runtimes = {runtime: open_clip(path).clip_logits for runtime, path in files.items()}
            waveform = noise(detector.features.sample_rate)
            times += time_rows(name, timed(runtimes | {JAX: in_jax(detector)}, waveform, rounds))
            bytes_.append(byte_row(name, detector, files))
    columns = ["CPU ms", "quartiles", "wall ms", "times real time", "off NumPy's logits by"]
    onnx = [".onnx", "its front end", "its graph", "its weights", "-step.onnx"]
    return {
        "machine": f"{rounds} rounds on {machine()}",
        "time": markdown(["detector", "runtime", *columns], times),
        "bytes": markdown(["detector", ".safetensors", *onnx, ".tflite", "C: flash", "C: RAM"], bytes_),
    }


def main(arguments: list[str]) -> None:
    """Measure, and print the tables or fill the page."""
    parser = argument_parser("python -m benchmarks.runtimes", __doc__)
    parser.add_argument("--model", nargs="+", type=Path, default=[], help="exported detectors")
    parser.add_argument("--rounds", type=int, default=15, help="how often each runtime processes the clip")
    parser.add_argument("--page", action="store_true", help="fill the page")
    options = parser.parse_args(arguments)
    tables = parts(detectors(options.model), options.rounds)
    print("\n\n".join(tables.values()))
    if options.page:
        fill(RESULTS / "runtimes.md", tables)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
