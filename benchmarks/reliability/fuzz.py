"""Gives every reader thousands of damaged and hostile files, and counts what becomes of them.

python -m benchmarks.reliability.fuzz [--only NAME …] [--inputs 10000] [--seed 0]
                                      [--out docs/results/reliability]

A target (fuzz_targets.py, fuzz_models.py) makes files that can be read.  A process of bounded memory and time
damages them (mutate.py), one input after the other, and reads them: that has to end well or in an InputError
of one printable line.  Any other exception, a hang, and a death by signal are counted, and what caused them
is kept; the process begins again after it.  An input depends on its target, the seed and its index alone.
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

from pydantic.dataclasses import dataclass

from benchmarks.reliability.fuzz_models import MODELS
from benchmarks.reliability.fuzz_targets import DATA, Target
from benchmarks.reliability.mutate import Files, mutated
from benchmarks.speed.turns import processor, versions
from qkd_jax.commands.cli import override, run_command
from qkd_jax.config.fields import Count
from qkd_jax.errors import InputError, printable
from qkd_jax.system.files import whole_file

ROOT = Path(__file__).parents[2]
MEMORY, SECONDS = 1 << 30, 10
"""Bytes beyond what the process has before the first input, and time for one input."""
LONGEST = 1000
"""Letters of a message."""
TARGETS = (*DATA, *MODELS)
FINE = ("read", "refused", "crash caught")

Say = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to read, how often, and where to keep what is found."""

    only: tuple[str, ...] = ()
    """Targets; all by default."""
    inputs: Count = 10_000
    """Of each target."""
    seed: int = 0
    """Of the damage."""
    first: int = 0
    """The first input's index: with `inputs` 1, one of them again."""
    keep: str = "fuzzed"
    """Folder of the inputs that were neither read nor refused."""
    out: str = str(ROOT / "docs/results/reliability")
    """Folder of the tally, which keeps what it has of other targets."""


@dataclasses.dataclass
class Tally:
    """What became of a target's inputs."""

    seed: int
    inputs: int = 0
    ends: Counter[str] = dataclasses.field(default_factory=Counter)
    """How many were read, refused, or caught in a process of their own (`FINE`); else what they ended in."""
    slowest: float = 0.0
    """Seconds of one input."""
    peak_mb: int = 0
    """Memory beyond what the process had before the first input."""

    @property
    def faults(self) -> int:
        """How many inputs did what none may."""
        return sum(count for end, count in self.ends.items() if end not in FINE)


def fuzz(target: Target, settings: Settings) -> Tally:
    """Read `settings.inputs` inputs of `target`; raises InputError if it can't read what it made itself."""
    tally, index, end = Tally(settings.seed), settings.first, settings.first + settings.inputs
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder, whole = Path(name, "input"), Path(name, "whole")
        for said in _child(lambda say: target.make(whole)):
            raise InputError(said.get("failed", str(said)))
        inputs = [_files(path) for path in sorted(whole.iterdir())]
        while index < end:
            for said in _child(partial(_work, target, inputs, settings, folder, range(index, end))):
                if "failed" in said:
                    raise InputError(f"{target.name}: expected to read what is whole: {said['failed']}")
                if died := said.get("died"):
                    kind = _caught(target, folder) if target.guard else died
                    if kind not in FINE:
                        _keep(folder, settings, f"{target.name}-{index}", died)
                    said = {"index": index, "end": kind}
                index = said["index"] + 1
                tally.inputs += 1
                tally.ends[said["end"]] += 1
                tally.slowest = max(tally.slowest, said.get("seconds", 0))
                tally.peak_mb = max(tally.peak_mb, said.get("peak_mb", 0))
    return tally


def _child(work: Callable[[Say], None]) -> Iterator[dict[str, Any]]:
    """What `work` says in a process of its own; at last why it `failed`, or the signal that it `died` of."""
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


def _be_child(work: Callable[[Say], None], writing: int) -> NoReturn:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for stream in (1, 2):  # libraries have much to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with open(writing, "w") as file:

        def say(**words: Any) -> None:
            print(json.dumps(words), file=file, flush=True)

        try:
            work(say)
        except BaseException as error:
            say(failed=str(error) if isinstance(error, InputError) else traceback.format_exc()[-900:])
        finally:
            file.flush()
            os._exit(0)


def _work(
    target: Target, inputs: list[Files], settings: Settings, folder: Path, indices: range, say: Say
) -> None:
    """Read what is whole, then damaged, and say of each damaged input how that ends."""
    for files in inputs:
        _write(folder, files)
        target.read(folder)
    warnings.simplefilter("error", RuntimeWarning)
    page = resource.getpagesize()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * page
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in indices:
        _write(folder, damaged(target, inputs, settings.seed, index))
        begun = time.monotonic()
        signal.alarm(SECONDS)  # that nobody handles, so that it ends native code too
        end, why = _end(partial(target.read, folder))
        signal.alarm(0)
        seconds = round(time.monotonic() - begun, 3)
        if end not in FINE:
            _keep(folder, settings, f"{target.name}-{index}", why)
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        say(index=index, end=end, seconds=seconds, peak_mb=peak)


def damaged(target: Target, inputs: list[Files], seed: int, index: int) -> Files:
    """Input `index` of `target`, of whose whole `inputs` it is made."""
    rng = random.Random(f"{target.name} {seed} {index}")
    while True:
        try:
            return mutated(rng, inputs, target.mutators)
        except Exception:
            continue  # there is nothing to mutate, or the format can't say it


def _end(read: Callable[[], Any]) -> tuple[str, str]:
    """How reading ends, and the words that it ends with."""
    try:
        read()
    except InputError as error:
        message = str(error)
        fine = message == printable(message) and len(message) <= LONGEST
        return ("refused" if fine else "message"), message
    except Exception as error:
        return type(error).__name__, traceback.format_exc()
    return "read", ""


def _caught(target: Target, folder: Path) -> str:
    """How reading ends where a process of its own is tried before."""
    (said,) = _child(lambda say: say(end=_end(partial(target.guard or target.read, folder))[0]))
    return "crash caught" if said.get("end") == "refused" else str(said.get("died", said.get("end")))


def _files(folder: Path) -> Files:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _write(folder: Path, files: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _keep(folder: Path, settings: Settings, name: str, why: str) -> None:
    kept = Path(settings.keep, name.replace(" ", "-"))
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept / "input")
    (kept / "why.txt").write_text(why, errors="backslashreplace")


def main(arguments: list[str]) -> None:
    """Read, count, and say what was found."""
    prog = "python -m benchmarks.reliability.fuzz"
    settings = override(Settings(), arguments, prog=prog, description=__doc__)
    known = [target.name for target in TARGETS]
    if unknown := set(settings.only).difference(known):
        raise InputError(f"only: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    faults = 0
    print(f"{'':18}{'inputs':>8}{'read':>8}{'refused':>9}{'crashed, caught':>17}{'slowest':>10}{'memory':>9}")
    for target in TARGETS:
        if settings.only and target.name not in settings.only:
            continue
        try:
            tally = fuzz(target, settings)
        except InputError as error:  # of a library that isn't installed, say
            print(f"{target.name:18}left out: {error}", flush=True)
            continue
        others = ", ".join(f"{count} {end}" for end, count in tally.ends.most_common() if end not in FINE)
        read, refused, caught = (tally.ends[end] for end in FINE)
        figures = f"{tally.inputs:8}{read:8}{refused:9}{caught:17}{tally.slowest:8.2f} s{tally.peak_mb:6} MB"
        print(f"{target.name:18}{figures}  {others}", flush=True)
        faults += tally.faults
        _write_tally(Path(settings.out) / "fuzz.json", target.name, tally)
    if faults:
        raise InputError(
            f"expected each input to be read or refused, found {faults} others: {settings.keep} has them"
        )


def _write_tally(path: Path, name: str, tally: Tally) -> None:
    """Keep the tally of a target beside those of the others that are there."""
    before = json.loads(path.read_text())["targets"] if path.is_file() else {}
    kept = {
        "targets": before | {name: vars(tally)},
        "machine": processor(),
        "versions": versions(
            *("soundfile", "soxr", "numpy", "pydantic", "orbax-checkpoint", "tensorstore", "jax"),
            *("onnxruntime", "ai-edge-litert", "safetensors"),
        ),
    }
    with whole_file(path, "w") as file:
        file.write(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
