"""Give every reader thousands of damaged and hostile files, and count how it ends.

    python -m benchmarks.reliability.fuzz [--only NAME …] [--inputs 10000] [--seed 0] [--out FOLDER]

A target (fuzz_targets.py, fuzz_models.py) makes files that can be read.  A process of bounded memory and
time damages them (mutate.py) and reads them, which must end well or in an InputError of one printable line.
Any other exception, a hang, and a death by signal are faults, whose input is kept; a new process continues.
An input depends only on its target, the seed and its index.
"""

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.common import RESULTS, argument_parser, processor, versions, write_json
from benchmarks.reliability.fuzz_models import MODELS
from benchmarks.reliability.fuzz_targets import DATA, Target
from benchmarks.reliability.mutate import Files, mutated
from qkd_jax.commands.cli import run_command
from qkd_jax.errors import InputError, printable

MEMORY, SECONDS = 1 << 30, 10
"""Bytes on top of what the process has before the first input, and time for one input."""
MAX_MESSAGE, KEPT = 1000, Path("fuzzed")
TARGETS = (*DATA, *MODELS)
FINE = ("read", "refused", "crash caught")
PACKAGES = (
    "av soundfile soxr numpy pydantic orbax-checkpoint tensorstore jax onnxruntime ai-edge-litert safetensors"
)

Report = Callable[..., None]


@dataclasses.dataclass
class Tally:
    """How the inputs of a target ended: in one of FINE, or in a fault."""

    seed: int
    inputs: int = 0
    ends: Counter[str] = dataclasses.field(default_factory=Counter)
    slowest: float = 0.0
    """Seconds of one input."""
    peak_mb: int = 0
    """Memory on top of what the process had before the first input."""


def fuzz(target: Target, inputs: int, seed: int = 0, first: int = 0) -> Tally:
    """Read `inputs` inputs of `target`, from number `first` on; faulty ones are kept in KEPT.

    Raises InputError if the target can't read the files that it makes.
    """
    tally, index, end = Tally(seed), first, first + inputs
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder, whole = Path(name, "input"), Path(name, "whole")
        for message in _child(lambda report: target.make(whole)):
            raise InputError(message.get("failed", str(message)))
        files = [_files(path) for path in sorted(whole.iterdir())]
        while index < end:
            for message in _child(partial(_work, target, files, seed, folder, range(index, end))):
                if "failed" in message:
                    raise InputError(f"{target.name}: expected to read whole files: {message['failed']}")
                if died := message.get("died"):
                    kind = _caught(target, folder) if target.guard else died
                    if kind not in FINE:
                        _keep(target, folder, index, died)
                    message = {"index": index, "end": kind}
                index = message["index"] + 1
                tally.inputs += 1
                tally.ends[message["end"]] += 1
                tally.slowest = max(tally.slowest, message.get("seconds", 0))
                tally.peak_mb = max(tally.peak_mb, message.get("peak_mb", 0))
    return tally


def _child(work: Callable[[Report], None]) -> Iterator[dict[str, Any]]:
    """What `work` reports in a process of its own; last, why it `failed` or the signal that it `died` of."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _be_child(work, writing)
    os.close(writing)
    with open(reading) as lines:
        yield from map(json.loads, lines)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        yield {"died": "hang" if number == signal.SIGALRM else signal.Signals(number).name}


def _be_child(work: Callable[[Report], None], writing: int) -> NoReturn:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for stream in (1, 2):  # libraries print a lot
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with open(writing, "w") as file:

        def report(**message: Any) -> None:
            print(json.dumps(message), file=file, flush=True)

        try:
            work(report)
        except BaseException as error:
            report(failed=str(error) if isinstance(error, InputError) else traceback.format_exc()[-900:])
        finally:
            file.flush()
            os._exit(0)


def _work(
    target: Target, inputs: list[Files], seed: int, folder: Path, indices: range, report: Report
) -> None:
    """Read the whole files, then damaged ones, and report how each of these ends."""
    for files in inputs:
        _write(folder, files)
        target.read(folder)
    warnings.simplefilter("error", RuntimeWarning)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in indices:
        _write(folder, damaged(target, inputs, seed, index))
        begun = time.monotonic()
        signal.alarm(SECONDS)  # not handled, so that it also ends native code
        end, why = _end(partial(target.read, folder))
        signal.alarm(0)
        seconds = round(time.monotonic() - begun, 3)
        if end not in FINE:
            _keep(target, folder, index, why)
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        report(index=index, end=end, seconds=seconds, peak_mb=peak)


def damaged(target: Target, inputs: list[Files], seed: int, index: int) -> Files:
    """Input `index` of `target`, made from its whole `inputs`."""
    rng = random.Random(f"{target.name} {seed} {index}")
    while True:
        try:
            return mutated(rng, inputs, target.mutators)
        except Exception:
            continue  # there is nothing to mutate, or the format can't express it


def _end(read: Callable[[], Any]) -> tuple[str, str]:
    """How reading ends, and with which message."""
    try:
        read()
    except InputError as error:
        message = str(error)
        fine = message == printable(message) and len(message) <= MAX_MESSAGE
        return ("refused" if fine else "message"), message
    except Exception as error:
        return type(error).__name__, traceback.format_exc()
    return "read", ""


def _caught(target: Target, folder: Path) -> str:
    """How reading ends where the file is first tried in a process of its own."""
    (message,) = _child(lambda report: report(end=_end(partial(target.guard or target.read, folder))[0]))
    return "crash caught" if message.get("end") == "refused" else str(message.get("died", message.get("end")))


def _files(folder: Path) -> Files:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _write(folder: Path, files: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _keep(target: Target, folder: Path, index: int, why: str) -> None:
    path = KEPT / f"{target.name.replace(' ', '-')}-{index}"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder, path / "input")
    (path / "why.txt").write_text(why, errors="backslashreplace")


def main(arguments: list[str]) -> None:
    """Fuzz the targets, print the tallies and keep them."""
    parser = argument_parser("python -m benchmarks.reliability.fuzz", __doc__)
    names = [target.name for target in TARGETS]
    add = parser.add_argument
    add("--only", nargs="+", choices=names, default=names, help="which targets; all by default")
    add("--inputs", type=int, default=10_000, help="inputs per target")
    add("--seed", type=int, default=0, help="seed of the damage")
    add("--first", type=int, default=0, help="index of the first input, to repeat one")
    add("--out", type=Path, default=RESULTS / "reliability", help="folder of the tally")
    options = parser.parse_args(arguments)
    path, faults = options.out / "fuzz.json", 0
    for target in (target for target in TARGETS if target.name in options.only):
        try:
            tally = fuzz(target, options.inputs, options.seed, options.first)
        except InputError as error:  # for example, a library is not installed
            print(f"{target.name}: left out: {error}", flush=True)
            continue
        print(f"{target.name}: {vars(tally)}", flush=True)
        faults += sum(count for end, count in tally.ends.items() if end not in FINE)
        before = json.loads(path.read_text())["targets"] if path.is_file() else {}
        targets = before | {target.name: vars(tally)}
        write_json(
            path, {"targets": targets, "machine": processor(), "versions": versions(*PACKAGES.split())}
        )
    if faults:
        raise InputError(f"expected each input to be read or refused, found {faults} faults, kept in {KEPT}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
