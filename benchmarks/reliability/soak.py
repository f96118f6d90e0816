"""A day of sound through detect.py in each runtime: memory, drift, and restarts from a saved state.

python -m benchmarks.reliability.soak [--model FILE.safetensors] [--hours 24] [--runtime c …] [--out FOLDER]

An hour of synthetic mixtures (clips as the demo makes them, with pauses) is heard again and again, piped to
detect.py as fast as it takes it; at the end its first seconds come once more, so that all is over that began.
As the hour repeats, so must its events from the second on, to the last bit of their peaks.  Then the day is
heard in pieces, each by a process of its own that goes on from the state of the one before: they are cut at
odd samples, by the end of the pipe and by SIGTERM in its midst, and must say what was said without a break.
"""

import hashlib
import json
import os
import random
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic.dataclasses import dataclass

from benchmarks.speed.turns import processor, versions
from benchmarks.text import markdown
from qkd_jax.commands.cli import override, run_command
from qkd_jax.config.fields import Count, Positive, RuntimeName
from qkd_jax.data.sources.demo import make_clip
from qkd_jax.detector import file as artefact
from qkd_jax.detector import stream
from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "runs/demo/distilled-4/distilled-4.safetensors"
PACKAGES = ("numpy", "jax", "onnxruntime", "ai-edge-litert", "litert-converter")
PIECES = 6
AFTER = 10
"""Seconds of sound after the last hour."""
MOST_GROWTH = 4096
"""kB that a process may hold more than after the first hour; two bytes a step would be as many in a day."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to stream, and where to keep the tally."""

    model: str = str(MODEL)
    """The detector; that of preset demo, of 4 bits, is trained if it is not there."""
    hours: Positive = 24.0
    """Of sound."""
    block: Count = 3600
    """Seconds after which the sound repeats: the hour, in a shorter test less."""
    runtime: tuple[RuntimeName, ...] = ("numpy", "c", "jax", "litert", "onnx")
    """Which, in this order."""
    seed: int = 0
    """Of the sound, and of where it is cut."""
    out: str = str(ROOT / "docs/results/reliability")
    """Folder of the tally."""


class Found(NamedTuple):
    """An event: its first and last step, and its peak, as it was said."""

    event: str
    first: int
    last: int
    peak: float


class Sound(NamedTuple):
    """A block of 16-bit samples that repeats, of so many steps, and the bytes that are heard in all."""

    block: bytes
    steps: int
    length: int

    def span(self, begin: int, end: int) -> Iterator[bytes]:
        """The bytes from `begin` to `end`, a block at a time."""
        while begin < end:
            at = begin % len(self.block)
            piece = self.block[at : at + end - begin]
            yield piece
            begin += len(piece)


def train() -> None:
    """Train preset demo, and export its student of 4 bits."""
    for command in (["train.py"], ["export.py", str(MODEL.parent)]):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def mixture(seconds: int, rate: int, seed: int) -> bytes:
    """Clips of 2 to 6 s that the demo makes, with up to 8 s of faint noise between them: 16-bit samples."""
    rng, parts, left = np.random.default_rng(seed), [], seconds * rate
    while left > 0:
        clip, _ = make_clip(rng, rate, rng.uniform(2, 6))
        pause = 10 ** rng.uniform(-5, -2) * rng.standard_normal(rng.integers(8 * rate))
        parts += [clip, pause]
        left -= len(clip) + len(pause)
    samples = np.concatenate(parts)[: seconds * rate]
    return np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def heard(
    command: Sequence[str], parts: Sequence[Iterable[bytes]], watch: Callable[[int], None] = lambda pid: None
) -> list[str]:
    """What `command` says of `parts` in one pipe: each but the last is heard by a process that SIGTERM ends.

    After each piece of a part, `watch` is told the process.  Raises InputError if one ends otherwise.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    lines: list[str] = []
    with os.fdopen(write, "wb") as pipe, os.fdopen(read, "rb") as source, tempfile.TemporaryFile() as errors:
        for number, part in enumerate(parts, 1):
            with subprocess.Popen(
                command, stdin=source, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process:
                listener = threading.Thread(target=lines.extend, args=[process.stdout])
                listener.start()
                for piece in part:
                    _write(write, piece, process)
                    watch(process.pid)
                if number < len(parts):
                    process.send_signal(signal.SIGTERM)
                else:
                    pipe.close()
                listener.join()
            expected = 0 if number == len(parts) else 130
            if process.returncode != expected:
                errors.seek(0)
                said = errors.read().decode().strip().splitlines()[-1:]
                raise InputError(
                    f"{' '.join(command)}: expected status {expected}, got {process.returncode}: {said}"
                )
    return lines


def _write(pipe: int, data: bytes, process: subprocess.Popen) -> None:
    """Write to a pipe that doesn't block, as long as there is someone to read."""
    left = memoryview(data)
    while left and process.poll() is None:
        if select.select([], [pipe], [], 1)[1]:
            left = left[os.write(pipe, left) :]


def by_block(lines: Sequence[str], clock: stream.Clock, sound: Sound) -> list[list[Found]]:
    """The events of each whole block, those that end in it, by steps since its begin."""
    begin, blocks = clock.first - clock.step / 2, sound.length // len(sound.block)
    found: list[list[Found]] = [[] for _ in range(blocks)]
    for said in map(json.loads, lines):
        # Times are said to a thousandth, steps are some hundredths.
        first, end = (round((said[time] - begin) / clock.step) for time in ("onset", "offset"))
        block = (end - 1) // sound.steps
        if block < blocks:
            moved = block * sound.steps
            found[block].append(Found(said["event"], first - moved, end - 1 - moved, said["peak"]))
    return found


def undisturbed(command: Sequence[str], sound: Sound) -> tuple[list[str], dict[str, Any]]:
    """What is said of all the sound, and what it took."""
    memory: list[int] = []

    def watch(pid: int) -> None:
        found = re.search(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        assert found
        memory.append(int(found[1]))

    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    lines = heard(command, [sound.span(0, sound.length)], watch)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return lines, {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "memory_kB": memory[:-1],  # after each hour; the last is of the seconds after
    }


def in_pieces(command: Sequence[str], sound: Sound, seed: int) -> tuple[list[str], int]:
    """What is said of it by processes that go on from a state, and how many they are."""
    rng, lines, processes = random.Random(seed), [], 0
    cuts = sorted(2 * rng.randrange(1, sound.length // 2, 2) for _ in range(PIECES - 1))
    with tempfile.TemporaryDirectory() as folder:
        going_on = [*command, "--state", str(Path(folder, "state"))]
        for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, sound.length])):
            stop = 2 * rng.randrange(begin // 2, end // 2)
            parts = [(begin, stop), (stop, end)] if number % 2 else [(begin, end)]
            lines += heard(going_on, [sound.span(*part) for part in parts])
            processes += len(parts)
    return lines, processes


def apart(found: Sequence[Found], expected: Sequence[Found]) -> dict[str, int]:
    """How many events are the same, how many `expected` meet none of their kind, and how many `found` do."""

    def missed(some: Sequence[Found], by: Sequence[Found]) -> int:
        return sum(
            not any(a.event == b.event and a.first <= b.last and b.first <= a.last for b in by) for a in some
        )

    return {
        "same": len(set(found) & set(expected)),
        "missed": missed(expected, found),
        "more": missed(found, expected),
    }


def soaked(
    command: Sequence[str], clock: stream.Clock, sound: Sound, expected: Sequence[Found], seed: int
) -> dict[str, Any]:
    """What a runtime's `command` makes of the day; raises InputError if that is not as it should be."""
    lines, tally = undisturbed(command, sound)
    blocks = by_block(lines, clock, sound)
    first, second = blocks[:2]
    for number, block in enumerate(blocks[2:], 3):
        if block != second:
            odd = sorted(set(block) ^ set(second))[:3]
            raise InputError(f"hour {number}: expected the events of hour 2, found others: {odd}")
    growth = tally["memory_kB"][-1] - tally["memory_kB"][0]
    if growth > MOST_GROWTH:
        raise InputError(f"expected memory to stay, found it grown by {growth} kB after the first hour")
    again, processes = in_pieces(command, sound, seed)
    # What was not yet over at the end, a state carries on.
    if not again or again != lines[: len(again)] or len(by_block(lines[len(again) :], clock, sound)[-1]):
        at = next((i for i, pair in enumerate(zip(again, lines)) if pair[0] != pair[1]), len(again))
        raise InputError(f"in pieces: expected the {len(lines)} lines of one, found another as number {at}")
    return tally | {
        "times_real_time": round(len(blocks) * sound.steps * clock.step / tally["cpu_seconds"]),
        "events": len(lines),
        "events_in_block": len(second),
        "other_in_first_block": len(set(first) ^ set(second)),
        "blocks_alike": len(blocks) - 1,
        "processes": processes,
        "beside_numpy": apart(second, expected),
    }


def table(tally: dict[str, Any]) -> str:
    """The figures as a page shows them."""
    rows = []
    for name, found in tally["runtimes"].items():
        beside, memory = found["beside_numpy"], (found["memory_kB"][0], found["memory_kB"][-1])
        rows.append(
            [
                name,
                f"{found['cpu_seconds']:,.0f}",
                f"{found['times_real_time']:,}",
                *(f"{kilobytes / 1024:.1f}" for kilobytes in memory),
                f"{memory[1] - memory[0]:+,}",
                f"{found['events']:,}",
                f"{found['events_in_block']} × {found['blocks_alike']}",
                f"{found['processes']}",
                f"{beside['same']}, {beside['missed']}, {beside['more']}",
            ]
        )
    head = [
        "runtime",
        "CPU s",
        "times real time",
        "MB after hour 1",
        "at the end",
        "kB more",
        "events",
        "an hour, alike",
        "processes",
        "same as NumPy's, missed, more",
    ]
    return markdown(head, rows)


def main(arguments: list[str]) -> None:
    """Soak each runtime, and keep the tally after each."""
    prog = "python -m benchmarks.reliability.soak"
    settings = override(Settings(), arguments, prog=prog, description=__doc__)
    if settings.model == str(MODEL) and not MODEL.is_file():
        train()
    detector, path = artefact.load(settings.model), Path(settings.out) / "soak.json"
    rate, clock = detector.features.sample_rate, stream.clock(detector.features, detector.student)
    _, hop = stream.reach(detector.features, detector.student)
    blocks = max(round(settings.hours * 3600 / settings.block), 3)
    if settings.block * rate % hop:
        raise InputError(f"block: expected whole steps of {hop} samples, got {settings.block * rate} samples")
    block = mixture(settings.block, rate, settings.seed)
    sound = Sound(block, settings.block * rate // hop, len(block) * blocks + 2 * rate * AFTER)

    def command(runtime: str) -> list[str]:
        return [
            sys.executable,
            str(ROOT / "detect.py"),
            settings.model,
            "-",
            "--format",
            "json",
            "--runtime",
            runtime,
        ]

    same = {
        "model": hashlib.sha256(Path(settings.model).read_bytes()).hexdigest(),
        "hours": blocks * settings.block / 3600,
        "block": settings.block,
        "seed": settings.seed,
    }
    tally: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if {key: tally.get(key) for key in same} != same:
        tally = same | {"runtimes": {}}
    left = [runtime for runtime in settings.runtime if runtime not in tally["runtimes"]]
    expected: list[Found] = []
    if left:
        short = sound._replace(length=2 * len(block) + 2 * rate * AFTER)
        expected = by_block(heard(command("numpy"), [short.span(0, short.length)]), clock, short)[1]
    for runtime in left:
        try:
            found = soaked(command(runtime), clock, sound, expected, settings.seed)
        except InputError as error:
            raise InputError(f"{runtime}: {error}") from None
        tally["runtimes"][runtime] = found
        tally |= {"machine": processor(), "versions": versions(*PACKAGES)}
        with whole_file(path, "w") as file:
            file.write(json.dumps(tally, indent=1) + "\n")
        print(f"{runtime}: done in {found['seconds']:.0f} s, and again in pieces", flush=True)
    print(table(tally))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
