"""A day of sound through the detect command in each runtime: memory, drift, and restarts from a saved state.

    python -m benchmarks.reliability.soak [--model FILE.safetensors] [--hours 24] [--runtimes c …]

An hour of synthetic mixtures (the demo's clips, with pauses) is piped to the detect command again and again,
as fast as it reads; at the end come its first seconds once more, so that every event is over.  As the hour
repeats, so must its events from the second hour on, to the last bit of their peaks.  Then the day is piped in
pieces to processes that each resume from the state of the one before: they are cut at odd samples, by the end
of the pipe and by SIGTERM in the middle, and must print the same lines as one process.
"""

import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
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
HOUR, AFTER = 3600, 10
"""Seconds after which the sound repeats, and seconds after the last hour."""
PIECES, ORDER = 6, ("same", "missed", "more")
MOST_GROWTH = 4096
"""kB that a process may grow after the first hour; two bytes per step would be as many in a day."""


Found = namedtuple("Found", "event first last peak")
"""An event: its first and last step, and its peak as printed."""


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
    new = partial(tempfile.TemporaryFile, "w+")
    with open(write, "wb") as pipe, open(read, "rb") as source, new() as output, new() as errors:
        for number, part in enumerate(parts, 1):
            with subprocess.Popen(command, stdin=source, stdout=output, stderr=errors, cwd=ROOT) as process:
                for piece in part:
                    _write(write, piece, process)
                    watch(process.pid)
                if number < len(parts):
                    process.send_signal(signal.SIGTERM)
                else:
                    pipe.close()
            expected = 0 if number == len(parts) else 130
            if process.returncode != expected:
                errors.seek(0)
                got = f"{process.returncode}: {errors.read().strip().splitlines()[-1:]}"
                raise InputError(f"{' '.join(command)}: expected status {expected}, got {got}")
        output.seek(0)
        return output.readlines()


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
        memory.append(int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]))

    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    lines = printed(command, [sound.part(0, sound.length)], watch)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # After each hour; the last value belongs to the seconds after.
    return lines, {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "memory_kB": memory[:-1]}


def in_pieces(command: Sequence[str], sound: Sound) -> tuple[list[str], int]:
    """The lines of processes that each resume from a state, and the number of processes."""
    rng, lines, processes = random.Random(0), [], 0
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

    def overlap(a: Found, b: Found) -> bool:
        return a.event == b.event and a.first <= b.last and b.first <= a.last

    missed, more = (
        sum(not any(overlap(a, b) for b in others) for a in some)
        for some, others in ((expected, found), (found, expected))
    )
    return {"same": len(set(found) & set(expected)), "missed": missed, "more": more}


def soaked(command: Sequence[str], clock: Clock, sound: Sound, expected: Sequence[Found]) -> dict[str, Any]:
    """The figures of a runtime's `command`; raises InputError for drift, growth, or other lines in pieces."""
    lines, tally = undisturbed(command, sound)
    blocks = by_block(lines, clock, sound)
    second = blocks[1]
    for number, block in enumerate(blocks[2:], 3):
        if block != second:
            odd = sorted(set(block) ^ set(second))[:3]
            raise InputError(f"hour {number}: expected the events of hour 2, found others: {odd}")
    growth = tally["memory_kB"][-1] - tally["memory_kB"][0]
    if growth > MOST_GROWTH:
        raise InputError(f"expected constant memory, found growth by {growth} kB after the first hour")
    again, processes = in_pieces(command, sound)
    # Events still open at the end stay in the state, and are not printed.
    if not again or again != lines[: len(again)] or len(by_block(lines[len(again) :], clock, sound)[-1]):
        at = next((i for i, pair in enumerate(zip(again, lines)) if pair[0] != pair[1]), len(again))
        raise InputError(f"in pieces: expected the {len(lines)} lines of one process, found other line {at}")
    return tally | {
        "times_real_time": round(len(blocks) * sound.steps * clock.step / tally["cpu_seconds"]),
        "events": len(lines),
        "events_in_block": len(second),
        "blocks_alike": len(blocks) - 1,
        "processes": processes,
        "beside_numpy": compared(second, expected),
    }


def table(tally: dict[str, Any]) -> str:
    """The figures as a table."""
    rows = []
    for name, of in tally["runtimes"].items():
        first, *_, last = of["memory_kB"]
        figures = [f"{of['cpu_seconds']:,.0f}", f"{of['times_real_time']:,}", f"{first / 1024:.1f}"]
        figures += [f"{last / 1024:.1f}", f"{last - first:+,}", f"{of['events']:,}"]
        figures += [f"{of['events_in_block']} × {of['blocks_alike']}", str(of["processes"])]
        rows.append([name, *figures, ", ".join(str(of["beside_numpy"][key]) for key in ORDER)])
    header = ["runtime", "CPU s", "times real time", "MB after hour 1", "at the end", "kB more", "events"]
    header += ["per hour, alike", "processes", "same as NumPy's, missed, more"]
    return markdown(header, rows)


def main(arguments: list[str]) -> None:
    """Soak each runtime, and keep the tally after each."""
    parser = argument_parser("python -m benchmarks.reliability.soak", __doc__)
    add = parser.add_argument
    add("--model", type=Path, default=MODEL, help="detector; the demo's at 4 bits, trained if it isn't there")
    add("--hours", type=int, default=24, help="hours of sound")
    add("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES, help="which, in this order")
    add("--out", type=Path, default=RESULTS / "reliability", help="folder of the tally")
    options = parser.parse_args(arguments)
    if options.model == MODEL and not MODEL.is_file():
        for step in (["train"], ["export", f"{MODEL.parent}/{MODEL.stem}"]):
            subprocess.run([sys.executable, "-m", "qkd_jax", *step], cwd=ROOT, check=True)
    detector = file.load(options.model)
    rate, clock = detector.features.sample_rate, step_clock(detector.features, detector.network)
    _, hop = step_samples(detector.features, detector.network)
    if HOUR * rate % hop:
        raise InputError(f"{options.model}: expected whole steps of {hop} samples in an hour")
    block, after = mixture(HOUR, rate, 0), 2 * rate * AFTER
    sound = Sound(block, HOUR * rate // hop, len(block) * options.hours + after)
    short = sound._replace(length=2 * len(block) + after)

    def command(runtime: str) -> list[str]:
        detect = [sys.executable, "-m", "qkd_jax", "detect", str(options.model.absolute()), "-"]
        return [*detect, "--format", "json", "--runtime", runtime]

    expected = by_block(printed(command("numpy"), [short.part(0, short.length)]), clock, short)[1]
    tally: dict[str, Any] = {"hours": options.hours, "machine": processor(), "versions": versions(*PACKAGES)}
    tally |= {"runtimes": {}}
    for runtime in options.runtimes:
        try:
            figures = soaked(command(runtime), clock, sound, expected)
        except InputError as error:
            raise InputError(f"{runtime}: {error}") from None
        tally["runtimes"][runtime] = figures
        write_json(options.out / "soak.json", tally)
        print(f"{runtime}: done in {figures['seconds']:.0f} s, and again in pieces", flush=True)
    print(table(tally))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
