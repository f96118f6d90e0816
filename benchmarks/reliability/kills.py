"""Kills a run again and again, and compares how it ends with one that nobody disturbed.

python -m benchmarks.reliability.kills [--times 100] [--seed 0] [--out docs/results/reliability]

A small run makes its recordings, trains a teacher and three students, is scored, writes its report, and its
integers leave it in a file.  In each phase of this it is killed by SIGKILL, at a moment drawn from how often
and how long it is in that phase when nothing disturbs it, and the same command is given again each time.  The
last is left alone, and the next such run begins, until so many kills are counted.
"""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from pydantic.dataclasses import dataclass

from benchmarks.speed.turns import processor, versions
from qkd_jax.commands.cli import load_preset, override, run_command
from qkd_jax.commands.export import export
from qkd_jax.config import DataConfig, TeacherConfig, TrainConfig
from qkd_jax.config.fields import Count
from qkd_jax.errors import InputError
from qkd_jax.run_folder import checkpoints as checkpoint
from qkd_jax.run_folder.folder import load_run
from qkd_jax.system.files import whole_file
from qkd_jax.training.run import train

ROOT = Path(__file__).parents[2]
EXPORTED = "distilled-8"
CLIPS, BATCH, EPOCHS = 96, 16, 4
LAST_STEP = CLIPS // BATCH * EPOCHS
PHASES = {
    "recordings": 0,
    "features": 1,
    "steps": 2,
    "start, again": 2,
    "a checkpoint": 2,
    "evaluation": 3,
    "report": 4,
    "export": 5,
}
"""In the order in which a run comes to them; to those of one number by turns."""
_LOOK, _START = 0.01, 5.0  # seconds: between two looks at a folder, and of a start


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How often to kill, and where to keep the tally."""

    times: Count = 100
    """Kills in all, those of the tally that is there among them."""
    seed: int = 0
    """Of the moments."""
    out: str = str(ROOT / "docs/results/reliability")
    """Folder of the tally."""


def small(folder: Path) -> Config:
    """Preset demo, so small that a run takes half a minute."""
    demo = load_preset("demo", ROOT / "configs")
    tiny = {"convolutions": (4, 4, 4), "units": 8}
    students = {
        name: dataclasses.replace(demo.students[name], **tiny) for name in ("plain", "distilled", EXPORTED)
    }
    return dataclasses.replace(
        demo,
        runs=str(folder),
        data=DataConfig(source="demo", clip_seconds=1.0, demo_clips=(CLIPS, 32, 32)),
        teacher=TeacherConfig(blocks=(1, 1), growth=4, stem=4),
        students=students,
        train=TrainConfig(batch_size=BATCH, teacher_epochs=EPOCHS, student_epochs=EPOCHS),
    )


def run(folder: Path) -> None:
    """What is killed: a training, or what is left of it, and the export."""
    trained = load_run(train(small(folder)))
    path = trained.folder / EXPORTED / f"{EXPORTED}.safetensors"
    if not path.is_file():
        export(trained, EXPORTED, "safetensors")


def end(folder: Path) -> dict[str, np.ndarray]:
    """All that a finished run leaves: every array of its states, its logs, figures and files, by name."""
    found: dict[str, np.ndarray] = {}
    finished = load_run(folder / "demo")
    norm = (np.zeros(finished.shape[1], np.float32),) * 2
    for name in finished.names:
        with checkpoint.open_checkpoints(finished.folder / name / "checkpoints", read_only=True) as manager:
            for which, step in (("last", manager.latest_step()), ("best", manager.best_step())):
                assert step is not None
                state = checkpoint.restore(manager, step, finished.new_state(name, norm))
                for where, leaf in jax.tree.leaves_with_path(state):
                    found[f"{name} {which} {step} {jax.tree_util.keystr(where)}"] = np.asarray(leaf)
    kept = (
        "*/log.jsonl",
        "*/logits-*.npz",
        "teacher/teaching.npz",
        "results.json",
        f"*/{EXPORTED}.safetensors",
    )
    for path in (path for pattern in kept for path in finished.folder.glob(pattern)):
        found[str(path.relative_to(finished.folder))] = np.frombuffer(path.read_bytes(), np.uint8)
    return found


class Phases(NamedTuple):
    """How often a run came to each phase, and the seconds that it was there in all."""

    times: Counter[str]
    seconds: defaultdict[str, float]


def attempt(folder: Path, aim: str = "", nth: int = 1, wait: float = 0.0) -> tuple[str | None, Phases]:
    """Give the command, to be killed `wait` seconds after it came to the phase `aim` for the `nth` time, or
    as it leaves that.

    Returns the phase in which it was killed, None if it ended by itself; raises InputError if it fails.
    """
    command = [sys.executable, "-u", "-m", "benchmarks.reliability.kills", "run", str(folder)]
    phases, at, looked = Phases(Counter(), defaultdict(float)), "", time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            before, at = at, phase(folder, spoken=said.seek(0, os.SEEK_END) > 0)
            phases.times[at] += at != before
            phases.seconds[at] += time.monotonic() - looked
            looked = time.monotonic()
            if at == aim and phases.times[aim] == nth:
                due = time.monotonic() + wait
                while time.monotonic() < due and at == aim:
                    time.sleep(_LOOK)
                    at = phase(folder, spoken=said.seek(0, os.SEEK_END) > 0)
                process.kill()
                process.wait()
            time.sleep(_LOOK)
        said.seek(0)
        if process.returncode not in (0, -signal.SIGKILL):
            raise InputError(
                f"{folder}: expected a run to end or be killed, found status {process.returncode}: "
                f"{said.read().decode()}"
            )
    return at if process.returncode else None, phases


def phase(folder: Path, *, spoken: bool) -> str:
    """What a run in `folder` is at, told by what it has left and whether the process has `spoken`."""
    demo = folder / "demo"
    if not (demo / "config.json").is_file():
        return "features" if any(folder.glob(".features/*/*.npy")) else "recordings"
    if (demo / "report.html").is_file():
        return "export"
    if any(demo.glob(f"{EXPORTED}/checkpoints/{LAST_STEP}")):
        return "report" if (demo / "results.json").is_file() else "evaluation"
    if not spoken:
        return "start, again"
    return "a checkpoint" if any(demo.glob("*/checkpoints/*tmp*")) else "steps"


def mean(whole: Phases, name: str) -> float:
    """How long a run is in a phase, in seconds; a start again is no phase of an undisturbed one."""
    return whole.seconds[name] / whole.times[name] if whole.times[name] else _START


def main(arguments: list[str]) -> None:
    """Kill, count, compare."""
    if arguments[:1] == ["run"]:
        return run(Path(arguments[1]))
    prog = "python -m benchmarks.reliability.kills"
    settings = override(Settings(), arguments, prog=prog, description=__doc__)
    path = Path(settings.out) / "kills.json"
    before: Any = json.loads(path.read_text()) if path.is_file() else {"kills": {}, "runs": 0}
    tally, ends = Counter[str](before["kills"]), before["runs"]
    rng = random.Random(f"{settings.seed} {ends}")
    with tempfile.TemporaryDirectory() as name:
        _, whole = attempt(Path(name))
        expected = end(Path(name))
    while tally.total() < settings.times:
        with tempfile.TemporaryDirectory() as name:
            seen = Counter[str]()
            for aim in PHASES:
                if PHASES[phase(Path(name), spoken=True)] > PHASES[aim]:
                    continue  # past it
                # Of the visits that are left the first half, so that there is something left for the next.
                nth = rng.randint(1, max((whole.times[aim] - seen[aim]) // 2, 1))
                killed, phases = attempt(Path(name), aim, nth, rng.uniform(0, mean(whole, aim)))
                seen += phases.times
                if killed is not None:
                    tally[killed] += 1
                    print(f"{tally.total()}: killed at {killed}", flush=True)
            attempt(Path(name))
            found, ends = end(Path(name)), ends + 1
        different = [
            key for key in expected | found if not np.array_equal(expected.get(key, ()), found.get(key, ()))
        ]
        if different:
            raise InputError(
                f"after {tally.total()} kills: expected the same end, found other {different[:5]}"
            )
        print(f"run {ends} ended as the undisturbed one", flush=True)
        kept = {
            "kills": {name: tally[name] for name in PHASES},
            "runs": ends,
            "compared": len(expected),
            "seconds": round(sum(whole.seconds.values()), 1),
            "seed": settings.seed,
            "machine": processor(),
            "versions": versions("jax", "flax", "orbax-checkpoint", "numpy"),
        }
        with whole_file(path, "w") as file:
            file.write(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
