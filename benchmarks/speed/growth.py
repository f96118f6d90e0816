"""How time and memory grow with what there is to do."""

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
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from benchmarks.speed.page import time_text
from benchmarks.speed.turns import Row, in_turns
from qkd_jax.config import DataConfig, LSTMConfig, QuantConfig
from qkd_jax.errors import InputError

if TYPE_CHECKING:
    from qkd_jax.data.dataset import Dataset

QUESTION = "Growth of time and memory"
ABOUT = """Each size in a process of its own, whose memory is the most that it held, libraries and mapped
files included. Sound goes through `detect` as in detect.py (preset `small`, 4 bits); clips of 8 × 8
features are found by a manifest and drawn for an epoch in batches of 32; a train step is of the paper's
student, 8 bits, and grows with its weights or its batch. The slope is that of the logarithms of time and
size, in the upper half of the sizes; the goal, a time, is what a slope of 1.1 would allow."""
PACKAGES = ("flax", "optax", "grain", "numpy", "soundfile")
ROOT = Path(__file__).parents[2]
SECONDS = (10, 60, 600, 3600)
CLIPS = (100, 1000, 10_000, 100_000)
BATCHES, UNITS = (1, 4, 16, 64, 256), (32, 64, 128, 256, 512, 1024)
BATCH, STEPS, MELS = 32, 100, 64
STEEPEST = 1.1
"""Goal: the slope."""


class Point(NamedTuple):
    """Of one size: `seconds` of each round, and `peak`, bytes."""

    seconds: Sequence[float]
    peak: int


def peak() -> int:
    """Bytes of memory that this process held at most."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux counts in ru_maxrss what the process that started this one held, too
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        assert found
        return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(task: str, *sizes: object) -> Point:
    """One of `TASKS` in a process of its own; raises InputError if it fails."""
    command = [sys.executable, "-m", "benchmarks.speed.growth", task, *map(str, sizes)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # as detect.py has it
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"{task} {' '.join(map(str, sizes))}: ended with status {done.returncode}")
    return Point(**json.loads(done.stdout.splitlines()[-1]))


def heard(model: str, recording: str) -> list[float]:
    """Seconds to detect events in a recording of any length."""
    from qkd_jax.audio.reading import audio_blocks
    from qkd_jax.detector.events import detect
    from qkd_jax.detector.file import load

    detector = load(Path(model))
    begun = time.perf_counter()
    for _ in detect(detector, audio_blocks(recording, detector.features.sample_rate, silent=True)):
        pass
    return [time.perf_counter() - begun]


def opened(root: Path, clips: int) -> "Dataset":
    """The first `clips` of the data set `root`, of features 8 × 8."""
    from qkd_jax.data.cache import cached
    from qkd_jax.data.clips import targets
    from qkd_jax.data.dataset import Dataset
    from qkd_jax.data.features import CachedFeatures
    from qkd_jax.data.sources.manifest import read_manifest

    def compute(_: Path) -> np.ndarray:
        return np.ones((8, 8), np.float32)

    found = read_manifest(DataConfig(root=str(root), manifest=f"{clips}.csv"))
    entries, bad = cached(found, compute, root / ".features", settings="", width=8, title="features")
    assert not bad
    return Dataset([clip.name for clip in found], CachedFeatures(entries), targets(found, ("dog",)), ("dog",))


def drawn(root: str, clips: str) -> list[float]:
    """Seconds to open a data set, and to draw an epoch of batches."""
    from qkd_jax.data.batches import from_step, train_batches

    begun = time.perf_counter()
    data = opened(Path(root), int(clips))
    batches = iter(from_step(train_batches(data, None, frames=8, batch_size=BATCH, seed=0), 0))
    for _ in range(len(data.names) // BATCH):
        next(batches)
    return [time.perf_counter() - begun]


def trained(batch: str, units: str, steps: str, rounds: str) -> list[float]:
    """Seconds of a train step in each round."""
    import jax

    from benchmarks.speed.start import train_step

    student = LSTMConfig(units=int(units), quant=QuantConfig.paper(8))
    step, new_state, examples = train_step(student, (int(batch), int(steps), MELS))
    state, on_device = new_state(), jax.device_put(examples)

    def call() -> None:
        nonlocal state
        state, metrics = step(state, on_device)
        jax.block_until_ready((state, metrics))

    return in_turns({"step": call}, int(rounds))["step"]


TASKS: dict[str, Callable[..., list[float]]] = {"heard": heard, "drawn": drawn, "trained": trained}


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """By what power of the size time grows from the first to the last."""
    return math.log(seconds[-1] / seconds[0]) / math.log(sizes[-1] / sizes[0])


def grown(
    labels: Sequence[str], sizes: Sequence[float], points: Iterable[Point], *, ours: str, unit: str
) -> Iterator[Row]:
    """A row a point, the last one with the slope and how memory grows in the upper half of `sizes`."""
    half, medians, peaks = (len(sizes) - 1) // 2, [], []
    for label, size, point in zip(labels, sizes, points):
        medians.append(float(np.median(point.seconds)))
        peaks.append(point.peak)
        note = f"{point.peak / 1e6:,.0f} MB; {time_text(medians[-1] / size)} a {unit}"
        most = None
        if len(medians) == len(sizes):
            steepness = slope(sizes[half:], medians[half:])
            note += f"; from {labels[half]} on: slope {steepness:.2f}, memory × {peaks[-1] / peaks[half]:.2f}"
            # What the slope at most allows.
            most = medians[half] * (sizes[-1] / sizes[half]) ** STEEPEST
        yield Row(what=label, ours=ours, seconds=point.seconds, at_most=most, note=note)


def sounds(folder: Path, seconds: Sequence[int]) -> Iterator[Point]:
    """Noise of each length through a detector."""
    import soundfile

    from benchmarks.speed.start import untrained
    from qkd_jax.commands.cli import load_preset
    from qkd_jax.detector import file as artefact

    rng = np.random.default_rng(0)
    student = load_preset("small", ROOT / "configs").students["distilled-4"]
    detector, _ = untrained(student, rng.normal(size=(200, MELS)).astype(np.float32))
    artefact.save(detector, folder / "detector.safetensors")
    rate = detector.features.sample_rate
    noise = rng.uniform(-0.5, 0.5, rate)
    for length in seconds:
        with soundfile.SoundFile(folder / "noise.wav", "w", rate, 1) as file:
            for _ in range(length):
                file.write(noise)
        yield measured("heard", folder / "detector.safetensors", folder / "noise.wav")


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
        yield measured("drawn", folder, count)


def rows(
    rounds: int,
    seconds: Sequence[int] = SECONDS,
    clips: Sequence[int] = CLIPS,
    batches: Sequence[int] = BATCHES,
    units: Sequence[int] = UNITS,
    steps: int = STEPS,
) -> Iterator[Row]:
    """Sounds and data sets once, train steps in each round."""
    with tempfile.TemporaryDirectory() as folder:
        labels, points = [f"{each:,} s of sound" for each in seconds], sounds(Path(folder), seconds)
        yield from grown(labels, seconds, points, ours="detect", unit="second")
    with tempfile.TemporaryDirectory() as folder:
        labels, points = [f"{each:,} clips" for each in clips], data_sets(Path(folder), clips)
        yield from grown(labels, clips, points, ours="opening, and an epoch", unit="clip")
    labels = [f"batch {each}, 256 units, {steps} steps" for each in batches]
    points = (measured("trained", each, 256, steps, rounds) for each in batches)
    yield from grown(labels, batches, points, ours="train step", unit="clip")
    labels = [f"batch 16, {each} units, {steps} steps" for each in units]
    points = (measured("trained", 16, each, steps, rounds) for each in units)
    # What grows in proportion is the number of weights.
    weights = [4 * each * (each + MELS) for each in units]
    yield from grown(labels, weights, points, ours="train step", unit="weight")


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    print(json.dumps({"seconds": TASKS[task](*arguments), "peak": peak()}))
