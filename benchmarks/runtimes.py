"""How fast a detector is in each runtime, how many bytes its files have, and how soon detect.py speaks.

python -m benchmarks.runtimes [--model FILE.safetensors …] [--rounds 15] [--out docs/results/runtimes.md]

Without a model the detectors are untrained ones of the paper's size and of preset `small`: what a step
costs doesn't depend on what was learned.  All runtimes hear the same noise on one thread, in turns, so that
a busy machine slows them all.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

# One thread for NumPy and for JAX, of which each asks when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
from pydantic.dataclasses import dataclass

from benchmarks.text import DASH, markdown
from qkd_jax.audio import log_mel as logmel
from qkd_jax.commands.cli import load_preset, override, run_command
from qkd_jax.config import DataConfig, FeatureConfig, LSTMConfig, QuantConfig, RunConfig
from qkd_jax.config.fields import Count
from qkd_jax.detector import file as artefact
from qkd_jax.detector.detector import Detector
from qkd_jax.errors import InputError
from qkd_jax.models.build import build_model
from qkd_jax.models.common import with_norm
from qkd_jax.models.lstm_integer import calibrate, to_detector
from qkd_jax.runtimes import c, litert, onnx
from qkd_jax.runtimes.exported import open_exported
from qkd_jax.runtimes.jax import to_jax
from qkd_jax.system.files import whole_file

SECONDS = 10
STARTS = 5
CLOSE = 0.02  # of the largest; front ends differ in a float's last bit, which at times turns an input's code
ROOT = Path(__file__).parents[1]
EVENTS = ("dog", "baby_cry", "gunshot")
NUMPY, JAX, ONNX, LITERT, C = "NumPy", "JAX", "ONNX Runtime", "LiteRT", "C"
SUFFIXES = {NUMPY: ".safetensors", ONNX: ".onnx", LITERT: ".tflite", C: ".h"}
PACKAGES = {NUMPY: "numpy", JAX: "jax", ONNX: "onnxruntime", LITERT: "ai-edge-litert"}

ClipLogits = Callable[[np.ndarray], np.ndarray]
"""A waveform float32 [samples] to logits float32 [events]."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, and where to say it."""

    model: tuple[str, ...] = ()
    """Detectors, as export.py writes them; untrained ones by default."""
    rounds: Count = 15
    """How often each runtime hears the clip."""
    out: str | None = None
    """The page to write."""


class Times(NamedTuple):
    """Seconds of each round, of the processor and on the clock, and how far logits are from NumPy's."""

    cpu: list[float]
    wall: list[float]
    difference: float


def untrained(student: LSTMConfig, features: FeatureConfig = FeatureConfig()) -> Detector:
    """The detector that `student` is before training, its units calibrated on noise."""
    data = DataConfig(events=EVENTS, clip_seconds=float(SECONDS))
    config = RunConfig(features=features, data=data)
    log_mel = logmel.log_mel(jnp.asarray(noise(features.sample_rate))[None], features)
    variables = dict(jax.jit(build_model(student, len(EVENTS)).init)(jax.random.key(0), log_mel))
    variables = with_norm(variables, log_mel.mean(axis=(0, 1)), log_mel.std(axis=(0, 1)))
    exponents = calibrate(student, variables, [log_mel])
    return to_detector(config, student, variables | {"exponents": exponents})


def noise(sample_rate: int) -> np.ndarray:
    """SECONDS of noise whose loudness changes five times a second, float32 [samples]."""
    rng = np.random.default_rng(0)
    loudness = 10 ** rng.uniform(-3, -0.5, 5 * SECONDS)  # of one loudness, logits stay near 0
    return (rng.normal(0, 1, SECONDS * sample_rate) * loudness.repeat(sample_rate // 5)).astype(np.float32)


def written(detector: Detector, folder: Path) -> dict[str, Path]:
    """The file for each runtime but JAX, which needs none; no LiteRT's if nothing here can write that."""
    files = {runtime: folder / f"detector{suffix}" for runtime, suffix in SUFFIXES.items()}
    artefact.save(detector, files[NUMPY])
    onnx.save(onnx.clip_model(detector), files[ONNX])
    files[C].write_text(c.to_c(detector))
    if importlib.util.find_spec("litert_converter"):
        files[LITERT].write_bytes(litert.to_litert(detector))
    else:
        del files[LITERT]
    return files


def in_jax(detector: Detector) -> ClipLogits:
    """The detector in JAX, front end and all, as one program."""
    logits = to_jax(detector)
    compiled = jax.jit(lambda waveform: logits(logmel.log_mel(waveform, detector.features)[None])[0])
    return lambda waveform: np.asarray(compiled(waveform))


def timed(runtimes: Mapping[str, ClipLogits], waveform: np.ndarray, rounds: int) -> dict[str, Times]:
    """Let `runtimes` hear `waveform` in turns.

    Raises InputError if logits of any but LiteRT's, whose rounding is its own, aren't those of NumPy.
    """
    expected, times = runtimes[NUMPY](waveform), {}
    for name, clip_logits in runtimes.items():  # compiles, too
        off = float(abs(clip_logits(waveform) - expected).max())
        if name != LITERT and not off <= CLOSE * abs(expected).max():
            raise InputError(f"{name}: expected NumPy's logits, found them off by {off:.2g}")
        times[name] = Times([], [], off)
    for _ in range(rounds):
        for name, clip_logits in runtimes.items():
            wall, cpu = time.perf_counter(), time.process_time()
            clip_logits(waveform)
            times[name].cpu.append(time.process_time() - cpu)
            times[name].wall.append(time.perf_counter() - wall)
    return times


def time_rows(detector: str, times: Mapping[str, Times]) -> list[list[str]]:
    """The rows of `detector` in the table of times."""
    rows = []
    for runtime in (NUMPY, JAX, ONNX, LITERT, C):
        if runtime not in times:
            rows.append([detector, runtime, *[DASH] * 5])
            continue
        cpu, wall, difference = times[runtime]
        low, middle, high = np.percentile(cpu, [25, 50, 75]) * 1e3
        spread, clock = f"{low:.1f} to {high:.1f}", f"{np.median(wall) * 1e3:.1f}"
        off = f"{difference:.1g}" if difference else "0"
        rows.append(
            [detector, runtime, f"{middle:.1f}", spread, clock, f"{SECONDS * 1e3 / middle:,.0f}", off]
        )
    return rows


def byte_row(name: str, detector: Detector, files: Mapping[str, Path]) -> list[str]:
    """The row of `detector` in the table of bytes."""
    sizes = onnx.sizes(onnx.clip_model(detector))
    step = sum(onnx.sizes(onnx.step_model(detector)).values())
    tflite = f"{files[LITERT].stat().st_size:,}" if LITERT in files else DASH
    numbers = [files[ONNX].stat().st_size, sizes["front_end"], sizes["graph"], sizes["weights"], step]
    memory = c_memory(files[C].read_text())
    return [
        name,
        f"{files[NUMPY].stat().st_size:,}",
        *(f"{number:,}" for number in numbers),
        tflite,
        *(f"{number:,}" for number in memory),
    ]


def c_memory(header: str) -> tuple[int, int]:
    """Bytes of flash and of RAM, as the text of a C header says them."""
    flash, ram = (re.search(rf"\b{kind}: (\d+) bytes", header) for kind in ("Flash", "RAM"))
    assert flash and ram
    return int(flash[1]), int(ram[1])


def seconds_to_start(model: Path, sample_rate: int) -> list[float]:
    """How long after its start detect.py says its first line: the libraries and the model are then loaded."""
    recording = model.with_name("noise.wav")
    soundfile.write(recording, noise(sample_rate), sample_rate)
    command, seconds = [sys.executable, str(ROOT / "detect.py"), str(model), str(recording)], []
    for _ in range(STARTS):
        begun = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            line = process.stdout.readline()
            seconds.append(time.perf_counter() - begun)
            process.stdout.read()
        if process.returncode or not line:
            raise InputError(f"detect.py: expected a table, it ended with status {process.returncode}")
    return seconds


def detectors(models: Sequence[str]) -> dict[str, Detector]:
    """Those in the files `models`, or untrained ones, by what the tables call them.

    Raises InputError for files of the same name, and if `artefact.load` does.
    """
    if models:
        found = {Path(model).stem: artefact.load(model) for model in models}
        if len(found) < len(models):
            raise InputError(f"--model: expected files of different names, got {', '.join(models)}")
        return found
    paper = {f"256 units, {bits} bits": LSTMConfig(quant=QuantConfig.integer(bits)) for bits in (8, 4)}
    small = load_preset("small", ROOT / "configs").students["distilled-4"]
    return {name: untrained(student) for name, student in (paper | {"small, 4 bits": small}).items()}


def machine() -> str:
    """What was measured on, in words."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    said = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    versions = [f"{name} {_version(package)}" for name, package in PACKAGES.items()]
    processor = platform.processor() or platform.machine()
    system = f"{platform.system()} on {processor} ({os.cpu_count()} CPUs)"
    return f"{system}, Python {platform.python_version()}, {', '.join(versions)}, {said.splitlines()[0]}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return DASH


def tables(measured: Mapping[str, Detector], rounds: int) -> str:
    """The tables of what is `measured`."""
    times, sizes, starts = [], [], []
    for name, detector in measured.items():
        waveform = noise(detector.features.sample_rate)
        with tempfile.TemporaryDirectory() as folder:
            files = written(detector, Path(folder))
            runtimes = {runtime: open_exported(path).clip_logits for runtime, path in files.items()}
            times += time_rows(name, timed(runtimes | {JAX: in_jax(detector)}, waveform, rounds))
            sizes.append(byte_row(name, detector, files))
            started = seconds_to_start(files[NUMPY], detector.features.sample_rate)
            starts.append([name, f"{statistics.median(started):.2f}", f"{min(started):.2f}"])
    cells = ["CPU ms", "quartiles", "wall ms", "times real time", "off NumPy's logits by"]
    onnx_cells = [".onnx", "its front end", "its graph", "its weights", "-step.onnx"]
    parts = [
        f"""## Time

Of a clip of {SECONDS} s, from samples to logits. CPU time is the process's: the median of {rounds} rounds,
and their quartiles; on a machine that does other work, too, it says more than the time on the clock (wall).
Real time is counted by it. LiteRT's model is of one step: its front end is NumPy's, the loop Python's.""",
        markdown(["detector", "runtime", *cells], times),
        """## Bytes

Of whole files; the parts of the .onnx for clips are those of `onnx.sizes`. Flash is a C header's constants,
beside the code, RAM its state.""",
        markdown(["detector", ".safetensors", *onnx_cells, ".tflite", "C: flash", "C: RAM"], sizes),
        f"""## Start

From the start of `python detect.py MODEL FILE` to its first line, the table's head, when libraries and model
are loaded: seconds on the clock, of {STARTS} starts.""",
        markdown(["detector", "median", "least"], starts),
    ]
    return "\n\n".join(parts)


def main(arguments: list[str]) -> None:
    """Measure, and print the page; write it, too, if asked."""
    settings = override(Settings(), arguments, prog="python -m benchmarks.runtimes", description=__doc__)
    which = "Detectors as exported" if settings.model else "Untrained detectors"
    text = f"""# A detector in each runtime

Written by `python -m benchmarks.runtimes`: edits would be lost. {which}, on one thread, the runtimes
in turns, on noise. {machine()}.

{tables(detectors(settings.model), settings.rounds)}
"""
    print(text, end="")
    if settings.out:
        with whole_file(Path(settings.out), "w") as file:
            file.write(text)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
