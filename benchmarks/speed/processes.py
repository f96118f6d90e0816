"""What is measured in processes: start-up, imports, compilation, and the growth of time and memory."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from benchmarks.common import EVENTS, ROOT
from benchmarks.speed.measure import Row, agree, beside, in_turns
from qkd_jax.config import ClipRecipe, DenseNetConfig, LSTMConfig, ManifestData, QuantConfig
from qkd_jax.errors import InputError

SHAPE = (64, 998, 64)
FIRST_LINE = 1.0
"""Goal: seconds."""
IMPORTS = {"import qkd_jax": 0.2, "from qkd_jax import lstm_scan": 0.2, "from qkd_jax import *": None}
"""What to import, and the goal: this many seconds more than JAX."""
PAPER = LSTMConfig(quant=QuantConfig.paper(8))
COMPILED = {"the paper's student, 8 bits": (PAPER, 15.0), "DenseNet-63": (DenseNetConfig(), None)}
"""Networks whose train steps to compile three times, and the goal: seconds."""
CLOSE = 0.02
"""Relative to the logit: front ends differ in a float's last bit, which can turn an input's code."""
SCRIPT = """
import sys, onnxruntime, soundfile
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
waveform, _ = soundfile.read(sys.argv[2], dtype="float32")
print(session.run(["logits"], {"waveform": waveform})[0][0], flush=True)
"""
SECONDS, CLIPS = (10, 60, 600, 3600), (100, 1000, 10_000, 100_000)
BATCHES, HIDDEN_SIZES = (1, 4, 16, 64, 256), (32, 64, 128, 256, 512, 1024)
BATCH, STEPS, MELS = 32, 100, 64
STEEPEST = 1.1
"""Goal: the slope of time over size, in logarithms."""


class Point(NamedTuple):
    """One size: `seconds` of each round, and `peak` memory in bytes."""

    seconds: Sequence[float]
    peak: int


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss on Linux includes the process that started this one
        match = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        assert match
        return 1024 * int(match[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(task: str, *sizes: object, **environment: str) -> Point:
    """One of `TASKS` in a process of its own; raises InputError if it fails."""
    command = [sys.executable, "-m", "benchmarks.speed.processes", task, *map(str, sizes)]
    # One thread for NumPy's products, as in the detect command.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"{task} {' '.join(map(str, sizes))}: ended with status {done.returncode}")
    return Point(**json.loads(done.stdout.splitlines()[-1]))


def write_detector(path: Path, network: LSTMConfig) -> Any:
    """Write an untrained detector to `path`, and return it."""
    from benchmarks.speed.detector import untrained
    from qkd_jax.detector import file

    x = np.random.default_rng(0).normal(size=(200, MELS)).astype(np.float32)
    detector, _ = untrained(network, x)
    file.save(detector, path)
    return detector


def first_line(command: Sequence[str]) -> str:
    """The first line that `command` prints; it is then killed.  Raises InputError if it prints none."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        process.kill()
    if not line:
        raise InputError(f"{' '.join(command)}: expected a line, it ended with status {process.returncode}")
    return line


def starts(rounds: int) -> Iterator[Row]:
    """The detect command beside a script that uses ONNX Runtime."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, recording = folder / "detector.safetensors", folder / "noise.wav"
        detector = write_detector(model, LSTMConfig(quant=QuantConfig.integer(8)))
        waveform = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
        soundfile.write(recording, waveform, detector.features.sample_rate, subtype="FLOAT")
        ours = [sys.executable, "-m", "qkd_jax", "detect", str(model), str(recording)]
        mine, script = "qkd-jax detect", "a script with ONNX Runtime"
        calls, off = {mine: lambda: first_line(ours)}, None
        if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
            from qkd_jax.audio import log_mel_numpy
            from qkd_jax.detector import reference
            from qkd_jax.runtimes import write

            write("onnx", detector, folder / "detector.onnx")
            theirs = [sys.executable, "-c", SCRIPT, f"{folder}/detector.onnx", str(recording)]
            codes = reference.input_codes(detector, log_mel_numpy.log_mel(detector.features, waveform))
            expected = reference.clip_logits(detector, codes)
            off = agree(script, expected[:1], [float(first_line(theirs))], CLOSE)
            calls[script] = lambda: first_line(theirs)
        seconds = in_turns(calls, rounds)
    what, pair = "256 units, 8 bits: to the first line", (mine, script if script in seconds else None)
    for row in beside(what, seconds, {pair: off}):
        yield dataclasses.replace(row, at_most=FIRST_LINE)


def imports(rounds: int) -> Iterator[Row]:
    """Whole processes that import qkd_jax, or JAX."""
    commands = {line: [sys.executable, "-c", line] for line in (*IMPORTS, "import jax")}

    def call(command: list[str]) -> Callable[[], Any]:
        return lambda: subprocess.run(command, cwd=ROOT, check=True)

    seconds = in_turns({line: call(command) for line, command in commands.items()}, rounds)
    own = float(np.median(seconds["import jax"]))
    what, off = "a process that imports", {(line, "import jax"): None for line in IMPORTS}
    for row in beside(what, seconds, off, note=lambda mine: f"{np.median(mine) - own:+.2f} s"):
        more = IMPORTS[row.ours]
        yield dataclasses.replace(row, at_most=None if more is None else own + more)


def start_rows(rounds: int, shape: tuple[int, int, int] = SHAPE) -> Iterator[Row]:
    """Start-up, imports, compilation."""
    yield from starts(rounds)
    yield from imports(rounds)
    for name, (_, most) in COMPILED.items():
        uncached = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        points = [measured("compile", name, *shape, **uncached) for _ in range(min(rounds, 3))]
        what = f"compiling a train step of {name}, {' × '.join(map(str, shape))}"
        note = f"{np.median([point.seconds[0] for point in points]):.1f} s of it for tracing"
        seconds = [sum(point.seconds) for point in points]
        yield Row(what=what, ours="make_train_step", seconds=seconds, note=note, at_most=most)


def train_step(network: Any, shape: tuple[int, int, int]) -> tuple[Any, Callable[[], Any], Any]:
    """The step of `network` for features [batch, frames, mels], a maker of states, and a batch."""
    import jax.numpy as jnp

    from qkd_jax.models.build import build_model
    from qkd_jax.run_folder.state import init_state, make_optimizer
    from qkd_jax.training.clips import make_loss
    from qkd_jax.training.step import make_train_step

    batch, frames, mels = shape
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=(batch, len(EVENTS))).astype(np.float32)
    features = rng.normal(size=shape).astype(np.float32)
    examples = {"features": features, "labels": labels, "teacher_logits": labels}
    known = None if isinstance(network, DenseNetConfig) else np.ones(len(EVENTS), bool)
    recipe, model = ClipRecipe(), build_model(network, len(EVENTS))
    optimizer = make_optimizer(recipe, 1e-3, 1000)
    step = make_train_step(model, optimizer, make_loss(recipe, jnp.ones(len(EVENTS)), known))
    norm = (np.zeros(mels), np.ones(mels))
    return step, lambda: init_state(model, optimizer, (frames, mels), norm, 0), examples


def compile_seconds(name: str, *shape: str) -> list[float]:
    """Seconds to trace the train step of one of `COMPILED`, and to compile it."""
    import jax

    batch, frames, mels = map(int, shape)
    step, new_state, examples = train_step(COMPILED[name][0], (batch, frames, mels))
    state = jax.eval_shape(new_state)
    begun = time.perf_counter()
    lowered = step.lower(state, examples)
    traced = time.perf_counter()
    lowered.compile()
    return [traced - begun, time.perf_counter() - traced]


def detect_seconds(model: str, recording: str) -> list[float]:
    """Seconds to detect events in a recording."""
    from qkd_jax.audio.reading import audio_blocks
    from qkd_jax.detector.events import detect
    from qkd_jax.detector.file import load

    detector = load(Path(model))
    begun = time.perf_counter()
    for _ in detect(detector, audio_blocks(recording, detector.features.sample_rate)):
        pass
    return [time.perf_counter() - begun]


def opened(root: Path, clips: int) -> Any:
    """The first `clips` clips of the data set `root`, with features 8 × 8."""
    from qkd_jax.data.cache import cached
    from qkd_jax.data.clips import targets
    from qkd_jax.data.dataset import Dataset
    from qkd_jax.data.features import CachedFeatures
    from qkd_jax.data.sources.manifest import read_manifest

    def compute(_: Any) -> np.ndarray:
        return np.ones((8, 8), np.float32)

    listed = read_manifest(ManifestData(root=str(root), manifest=f"{clips}.csv"))
    entries, bad = cached(listed, compute, root / ".features", settings="", width=8, title="features")
    assert not bad
    names, kind = [clip.name for clip in listed], np.ones(len(listed), np.int8)
    return Dataset(names, CachedFeatures(entries), targets(listed, ("dog",)), ("dog",), kind)


def epoch_seconds(root: str, clips: str) -> list[float]:
    """Seconds to open a data set and to draw an epoch of batches."""
    from qkd_jax.data.batches import clip_batches, from_step

    begun = time.perf_counter()
    data = opened(Path(root), int(clips))
    batches = iter(from_step(clip_batches(data, None, frames=8, batch_size=BATCH, seed=0), 0))
    for _ in range(len(data.names) // BATCH):
        next(batches)
    return [time.perf_counter() - begun]


def step_seconds(batch: str, hidden_size: str, steps: str, rounds: str) -> list[float]:
    """Seconds of a train step in each round."""
    import jax

    student = dataclasses.replace(PAPER, hidden_size=int(hidden_size))
    step, new_state, examples = train_step(student, (int(batch), int(steps), MELS))
    state, on_device = new_state(), jax.device_put(examples)

    def call() -> None:
        nonlocal state
        state, metrics = step(state, on_device)
        jax.block_until_ready((state, metrics))

    return in_turns({"step": call}, int(rounds))["step"]


TASKS: dict[str, Callable[..., list[float]]] = {"compile": compile_seconds, "detect": detect_seconds}
TASKS |= {"epoch": epoch_seconds, "step": step_seconds}


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power of the size with which time grows from the first to the last."""
    return math.log(seconds[-1] / seconds[0]) / math.log(sizes[-1] / sizes[0])


def grown(
    labels: Sequence[str], sizes: Sequence[float], points: Iterable[Point], ours: str, unit: str
) -> Iterator[Row]:
    """A row per point; the last has the slope, and the growth of memory, over the upper half of `sizes`."""
    half, medians, peaks = (len(sizes) - 1) // 2, [], []
    for label, size, point in zip(labels, sizes, points):
        medians.append(float(np.median(point.seconds)))
        peaks.append(point.peak)
        note = f"{point.peak / 1e6:,.0f} MB; {1e6 * medians[-1] / size:.3g} µs per {unit}"
        most = None
        if len(medians) == len(sizes):
            steepness = slope(sizes[half:], medians[half:])
            note += f"; from {labels[half]} on: slope {steepness:.2f}, memory × {peaks[-1] / peaks[half]:.2f}"
            most = medians[half] * (sizes[-1] / sizes[half]) ** STEEPEST
        yield Row(what=label, ours=ours, seconds=point.seconds, at_most=most, note=note)


def sounds(folder: Path, seconds: Sequence[int]) -> Iterator[Point]:
    """Noise of each length through a detector."""
    from qkd_jax.commands.cli import load_preset

    network: Any = load_preset("small").models["distilled-4"].network
    rate = write_detector(folder / "detector.safetensors", network).features.sample_rate
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, rate)
    for length in seconds:
        with soundfile.SoundFile(folder / "noise.wav", "w", rate, 1) as file:
            for _ in range(length):
                file.write(noise)
        yield measured("detect", folder / "detector.safetensors", folder / "noise.wav")


def data_sets(folder: Path, clips: Sequence[int]) -> Iterator[Point]:
    """Data sets of each size, the smaller ones parts of the largest."""
    (folder / "recording").touch()
    lines = ["filename,labels\n", *(f"{clip}.wav,{'dog' * (clip % 2)}\n" for clip in range(max(clips)))]
    for clip in range(max(clips)):
        (folder / f"{clip}.wav").symlink_to("recording")
    for count in clips:
        (folder / f"{count}.csv").write_text("".join(lines[: count + 1]))
    opened(folder, max(clips))  # computes the features
    for count in clips:
        yield measured("epoch", folder, count)


def growth_rows(
    rounds: int,
    seconds: Sequence[int] = SECONDS,
    clips: Sequence[int] = CLIPS,
    batches: Sequence[int] = BATCHES,
    hidden_sizes: Sequence[int] = HIDDEN_SIZES,
    steps: int = STEPS,
) -> Iterator[Row]:
    """Sounds and data sets once, train steps in each round."""
    # Time grows in proportion to the number of weights.
    weights = [4 * each * (each + MELS) for each in hidden_sizes]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        lengths, sets = sounds(Path(one), seconds), data_sets(Path(other), clips)
        yield from grown([f"{each:,} s of sound" for each in seconds], seconds, lengths, "detect", "second")
        yield from grown([f"{each:,} clips" for each in clips], clips, sets, "opening, and an epoch", "clip")
    labels = [f"batch {each}, 256 units, {steps} steps" for each in batches]
    points = (measured("step", each, 256, steps, rounds) for each in batches)
    yield from grown(labels, batches, points, "train step", "clip")
    labels = [f"batch 16, {each} units, {steps} steps" for each in hidden_sizes]
    points = (measured("step", 16, each, steps, rounds) for each in hidden_sizes)
    yield from grown(labels, weights, points, "train step", "weight")


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    print(json.dumps({"seconds": TASKS[task](*arguments), "peak": peak()}))
