"""A day of sound through the detect command in each runtime: memory, drift, and restarts from a saved state.

    python -m benchmarks.reliability.soak [--model FILE.safetensors] [--hours 24] [--runtimes c …]

An hour of synthetic mixtures (the demo's clips, with pauses) is piped to the detect command again and again,
as fast as it reads; at the end come its first seconds once more, so that every event is over.  As the hour
repeats, so must its events from the second hour on, to the last bit of their peaks.  Then the day is piped in
pieces to processes that each resume from the state of the one before: they are cut at odd samples, by the end
of the pipe and by SIGTERM in the middle, and must print the same lines as one process.
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

from benchmarks.common import RESULTS, ROOT, argument_parser, markdown, processor, versions, write_json
from qkd_jax.commands.cli import run_command
from qkd_jax.config import Clock, step_clock, step_samples
from qkd_jax.data.sources.demo import make_clip
from qkd_jax.detector import file
from qkd_jax.errors import InputError

MODEL = ROOT / "runs/demo/distilled-4.safetensors"
RUNTIMES = ("numpy", "c", "jax", "litert", "onnx")
PACKAGES = ("numpy", "jax", "onnxruntime", "ai-edge-litert", "litert-converter")
PIECES = 6
AFTER = 10
"""Seconds of sound after the last hour."""
MOST_GROWTH = 4096
"""kB that a process may grow after the first hour; two bytes per step would be as many in a day."""


class Found(NamedTuple):
    """An event: its first and last step, and its peak as printed."""

    event: str
    first: int
    last: int
    peak: float


class Sound(NamedTuple):
    """A block of 16-bit samples that repeats, its number of steps, and the number of bytes in all."""

    block: bytes
    steps: int
    length: int

    def part(self, begin: int, end: int) -> Iterator[bytes]:
        """The bytes from `begin` to `end`, a block at a time."""
        while begin < end:
            at = begin % len(self.block)
            piece = self.block[at : at + end - begin]
            yield piece
            begin += len(piece)


def mixture(seconds: int, rate: int, seed: int) -> bytes:
    """The demo's clips of 2 to 6 s, with up to 8 s of faint noise between them: 16-bit samples."""
    rng, parts, left = np.random.default_rng(seed), [], seconds * rate
    while left > 0:
        clip, _ = make_clip(rng, rate, rng.uniform(2, 6))
        pause = 10 ** rng.uniform(-5, -2) * rng.standard_normal(rng.integers(8 * rate))
        parts += [clip, pause]
        left -= len(clip) + len(pause)
    samples = np.concatenate(parts)[: seconds * rate]
    return np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def printed(
    command: Sequence[str], parts: Sequence[Iterable[bytes]], watch: Callable[[int], None] = lambda pid: None
) -> list[str]:
    """The lines that `command` prints for `parts` in one pipe; SIGTERM ends the process of each but the last.

    After each piece of a part, `watch` gets the process id.  Raises InputError if a process ends otherwise.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    lines: list[str] = []
    with os.fdopen(write, "wb") as pipe, os.fdopen(read, "rb") as source, tempfile.TemporaryFile() as errors:
        for number, part in enumerate(parts, 1):
            with subprocess.Popen(
                command, stdin=source, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
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
                last = errors.read().decode().strip().splitlines()[-1:]
                raise InputError(
                    f"{' '.join(command)}: expected status {expected}, got {process.returncode}: {last}"
                )
    return lines


def _write(pipe: int, data: bytes, process: subprocess.Popen) -> None:
    """Write to a pipe that doesn't block, as long as the process runs."""
    left = memoryview(data)
    while left and process.poll() is None:
        if select.select([], [pipe], [], 1)[1]:
            left = left[os.write(pipe, left) :]


def by_block(lines: Sequence[str], clock: Clock, sound: Sound) -> list[list[Found]]:
    """The events that end in each whole block, in steps since its beginning."""
    begin, blocks = clock.first - clock.step / 2, sound.length // len(sound.block)
    found: list[list[Found]] = [[] for _ in range(blocks)]
    for line in map(json.loads, lines):
        # Times are printed to a thousandth of a second, and steps are some hundredths long.
        first, end = (round((line[time] - begin) / clock.step) for time in ("onset", "offset"))
        block = (end - 1) // sound.steps
        if block < blocks:
            moved = block * sound.steps
            found[block].append(Found(line["event"], first - moved, end - 1 - moved, line["peak"]))
    return found


def undisturbed(command: Sequence[str], sound: Sound) -> tuple[list[str], dict[str, Any]]:
    """The lines of a single process, and its time and memory."""
    memory: list[int] = []

    def watch(pid: int) -> None:
        match = re.search(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        assert match
        memory.append(int(match[1]))

    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    lines = printed(command, [sound.part(0, sound.length)], watch)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # After each hour; the last value belongs to the seconds after.
    return lines, {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "memory_kB": memory[:-1]}


def in_pieces(command: Sequence[str], sound: Sound, seed: int) -> tuple[list[str], int]:
    """The lines of processes that each resume from a state, and the number of processes."""
    rng, lines, processes = random.Random(seed), [], 0
    cuts = sorted(2 * rng.randrange(1, sound.length // 2, 2) for _ in range(PIECES - 1))
    with tempfile.TemporaryDirectory() as folder:
        resuming = [*command, "--state", str(Path(folder, "state"))]
        for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, sound.length])):
            stop = 2 * rng.randrange(begin // 2, end // 2)
            parts = [(begin, stop), (stop, end)] if number % 2 else [(begin, end)]
            lines += printed(resuming, [sound.part(*part) for part in parts])
            processes += len(parts)
    return lines, processes


def compared(found: Sequence[Found], expected: Sequence[Found]) -> dict[str, int]:
    """How many events are the same, and how many of either side overlap none of their class on the other."""

    def alone(some: Sequence[Found], others: Sequence[Found]) -> int:
        return sum(
            not any(a.event == b.event and a.first <= b.last and b.first <= a.last for b in others)
            for a in some
        )

    same = len(set(found) & set(expected))
    return {"same": same, "missed": alone(expected, found), "more": alone(found, expected)}


def soaked(
    command: Sequence[str], clock: Clock, sound: Sound, expected: Sequence[Found], seed: int
) -> dict[str, Any]:
    """The figures of a runtime's `command`; raises InputError for drift, growth, or other lines in pieces."""
    lines, tally = undisturbed(command, sound)
    blocks = by_block(lines, clock, sound)
    first, second = blocks[:2]
    for number, block in enumerate(blocks[2:], 3):
        if block != second:
            odd = sorted(set(block) ^ set(second))[:3]
            raise InputError(f"hour {number}: expected the events of hour 2, found others: {odd}")
    growth = tally["memory_kB"][-1] - tally["memory_kB"][0]
    if growth > MOST_GROWTH:
        raise InputError(f"expected constant memory, found growth by {growth} kB after the first hour")
    again, processes = in_pieces(command, sound, seed)
    # Events still open at the end stay in the state, and are not printed.
    if not again or again != lines[: len(again)] or len(by_block(lines[len(again) :], clock, sound)[-1]):
        at = next((i for i, pair in enumerate(zip(again, lines)) if pair[0] != pair[1]), len(again))
        raise InputError(
            f"in pieces: expected the {len(lines)} lines of one process, found another line {at}"
        )
    return tally | {
        "times_real_time": round(len(blocks) * sound.steps * clock.step / tally["cpu_seconds"]),
        "events": len(lines),
        "events_in_block": len(second),
        "other_in_first_block": len(set(first) ^ set(second)),
        "blocks_alike": len(blocks) - 1,
        "processes": processes,
        "beside_numpy": compared(second, expected),
    }


def table(tally: dict[str, Any]) -> str:
    """The figures as a table."""
    rows = []
    for name, of in tally["runtimes"].items():
        beside, memory = of["beside_numpy"], (of["memory_kB"][0], of["memory_kB"][-1])
        figures = [f"{of['cpu_seconds']:,.0f}", f"{of['times_real_time']:,}"]
        figures += [*(f"{kilobytes / 1024:.1f}" for kilobytes in memory), f"{memory[1] - memory[0]:+,}"]
        figures += [
            f"{of['events']:,}",
            f"{of['events_in_block']} × {of['blocks_alike']}",
            str(of["processes"]),
        ]
        rows.append([name, *figures, f"{beside['same']}, {beside['missed']}, {beside['more']}"])
    header = ["runtime", "CPU s", "times real time", "MB after hour 1", "at the end", "kB more", "events"]
    header += ["per hour, alike", "processes", "same as NumPy's, missed, more"]
    return markdown(header, rows)


def main(arguments: list[str]) -> None:
    """Soak each runtime, and keep the tally after each."""
    parser = argument_parser("python -m benchmarks.reliability.soak", __doc__)
    add = parser.add_argument
    add("--model", type=Path, default=MODEL, help="detector; the demo's at 4 bits, trained if it isn't there")
    add("--hours", type=float, default=24.0, help="hours of sound")
    add("--block", type=int, default=3600, help="seconds after which the sound repeats: the hour")
    add("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES, help="which, in this order")
    add("--seed", type=int, default=0, help="seed of the sound, and of where it is cut")
    add("--out", type=Path, default=RESULTS / "reliability", help="folder of the tally")
    options = parser.parse_args(arguments)
    if options.model == MODEL and not MODEL.is_file():
        for step in (["train"], ["export", f"{MODEL.parent}/{MODEL.stem}"]):
            subprocess.run([sys.executable, "-m", "qkd_jax", *step], cwd=ROOT, check=True)
    detector, path = file.load(options.model), options.out / "soak.json"
    features, network = detector.features, detector.network
    rate, clock = features.sample_rate, step_clock(features, network)
    _, hop = step_samples(features, network)
    blocks = max(round(options.hours * 3600 / options.block), 3)
    if options.block * rate % hop:
        samples = options.block * rate
        raise InputError(f"--block: expected whole steps of {hop} samples, got {samples} samples")
    block = mixture(options.block, rate, options.seed)
    sound = Sound(block, options.block * rate // hop, len(block) * blocks + 2 * rate * AFTER)

    def command(runtime: str) -> list[str]:
        model = str(options.model.absolute())
        detect = [sys.executable, "-m", "qkd_jax", "detect", model, "-"]
        return [*detect, "--format", "json", "--runtime", runtime]

    same = {
        "model": hashlib.sha256(options.model.read_bytes()).hexdigest(),
        "hours": blocks * options.block / 3600,
        "block": options.block,
        "seed": options.seed,
    }
    tally: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if {key: tally.get(key) for key in same} != same:
        tally = same | {"runtimes": {}}
    left = [runtime for runtime in options.runtimes if runtime not in tally["runtimes"]]
    expected: list[Found] = []
    if left:
        short = sound._replace(length=2 * len(block) + 2 * rate * AFTER)
        expected = by_block(printed(command("numpy"), [short.part(0, short.length)]), clock, short)[1]
    for runtime in left:
        try:
            figures = soaked(command(runtime), clock, sound, expected, options.seed)
        except InputError as error:
            raise InputError(f"{runtime}: {error}") from None
        tally["runtimes"][runtime] = figures
        tally |= {"machine": processor(), "versions": versions(*PACKAGES)}
        write_json(path, tally)
        print(f"{runtime}: done in {figures['seconds']:.0f} s, and again in pieces", flush=True)
    print(table(tally))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
