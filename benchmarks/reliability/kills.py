"""Kill a run again and again, and compare its final state with that of an undisturbed one.

    python -m benchmarks.reliability.kills [--times 100] [--seed 0] [--out docs/results/reliability]

A small run makes its recordings, trains a teacher and three students, is scored, writes its report, and
exports its integers to a file.  In each phase it is killed by SIGKILL, at a moment drawn from how often and
how long an undisturbed run is in that phase, and the same command is given again each time.  The last
attempt is left alone, and the next run begins, until there are enough kills.
"""

import argparse
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

import qkd_jax
from benchmarks.common import RESULTS, ROOT, argument_parser, processor, versions, write_json
from qkd_jax.commands.cli import load_preset, run_command
from qkd_jax.config import ClipRecipe, DemoData, DenseNetConfig, RunConfig
from qkd_jax.errors import InputError
from qkd_jax.run_folder import checkpoints
from qkd_jax.run_folder.folder import load_run

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
"""The phases in the order of a run; those with one number alternate."""
_LOOK, _START = 0.01, 5.0  # seconds: between two looks at a folder, and of a start
KEPT = (
    "models/*/log.jsonl",
    "models/*/logits-*.npz",
    "models/teacher/teaching.npz",
    "results.json",
    f"{EXPORTED}.safetensors",
)


def small(folder: Path) -> RunConfig:
    """Preset demo, so small that a run takes half a minute."""
    demo = load_preset("demo")
    models = {}
    for name in ("teacher", "plain", "distilled", EXPORTED):
        model = demo.models[name]
        network: Any = model.network
        if name == "teacher":
            network = DenseNetConfig(blocks=(1, 1), growth=4, stem=4)
        else:
            network = dataclasses.replace(network, convolutions=(4, 4, 4), hidden_size=8)
        models[name] = dataclasses.replace(model, network=network, epochs=EPOCHS)
    data = DemoData(clip_seconds=1.0, counts=(CLIPS, 32, 32))
    recipe = ClipRecipe(batch_size=BATCH, epochs=EPOCHS)
    return dataclasses.replace(demo, runs=str(folder), data=data, recipe=recipe, models=models)


def run(folder: Path) -> None:
    """What is killed: a training, or the rest of one, and the export."""
    trained = qkd_jax.train(small(folder))
    if not (trained.folder / f"{EXPORTED}.safetensors").is_file():
        qkd_jax.export(trained, EXPORTED)


def final_state(folder: Path) -> dict[str, np.ndarray]:
    """Everything that a finished run leaves, by name: all arrays of its states, logs, figures and files."""
    arrays: dict[str, np.ndarray] = {}
    finished = load_run(folder / "demo")
    norm = (np.zeros(finished.shape[1], np.float32),) * 2
    for name in finished.names:
        path = finished.model_folder(name) / "checkpoints"
        with checkpoints.open_checkpoints(path, read_only=True) as manager:
            for which, step in (("last", manager.latest_step()), ("best", manager.best_step())):
                assert step is not None
                state = checkpoints.restore(manager, step, finished.new_state(name, norm))
                for where, leaf in jax.tree.leaves_with_path(state):
                    arrays[f"{name} {which} {step} {jax.tree_util.keystr(where)}"] = np.asarray(leaf)
    for path in (path for pattern in KEPT for path in finished.folder.glob(pattern)):
        arrays[str(path.relative_to(finished.folder))] = np.frombuffer(path.read_bytes(), np.uint8)
    return arrays


class Phases(NamedTuple):
    """How often a run entered each phase, and how many seconds it spent there in all."""

    times: Counter[str]
    seconds: defaultdict[str, float]


def attempt(folder: Path, aim: str = "", nth: int = 1, wait: float = 0.0) -> tuple[str | None, Phases]:
    """Start the run, and kill it `wait` seconds after it enters phase `aim` for the `nth` time, or leaves it.

    Returns the phase in which it was killed, None if it ended by itself; raises InputError if it fails.
    """
    command = [sys.executable, "-u", "-m", "benchmarks.reliability.kills", "--run", str(folder)]
    phases, at, looked = Phases(Counter(), defaultdict(float)), "", time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            before, at = at, phase(folder, printed=output.seek(0, os.SEEK_END) > 0)
            phases.times[at] += at != before
            phases.seconds[at] += time.monotonic() - looked
            looked = time.monotonic()
            if at == aim and phases.times[aim] == nth:
                due = time.monotonic() + wait
                while time.monotonic() < due and at == aim:
                    time.sleep(_LOOK)
                    at = phase(folder, printed=output.seek(0, os.SEEK_END) > 0)
                process.kill()
                process.wait()
            time.sleep(_LOOK)
        output.seek(0)
        if process.returncode not in (0, -signal.SIGKILL):
            raise InputError(
                f"{folder}: expected the run to end or be killed, found status {process.returncode}: "
                f"{output.read().decode()}"
            )
    return at if process.returncode else None, phases


def phase(folder: Path, *, printed: bool) -> str:
    """The phase of a run in `folder`, from the files it has left and whether the process has `printed`."""
    demo = folder / "demo"
    if not (demo / "config.json").is_file():
        return "features" if any(folder.glob(".features/*/*.npy")) else "recordings"
    if (demo / "report.html").is_file():
        return "export"
    if any(demo.glob(f"models/{EXPORTED}/checkpoints/{LAST_STEP}")):
        return "report" if (demo / "results.json").is_file() else "evaluation"
    if not printed:
        return "start, again"
    return "a checkpoint" if any(demo.glob("models/*/checkpoints/*tmp*")) else "steps"


def killed_run(folder: Path, whole: Phases, rng: random.Random) -> list[str]:
    """Kill a run once in each phase that it still reaches, then let it end; the phases of the kills."""
    seen, kills = Counter[str](), []
    for aim in PHASES:
        if PHASES[phase(folder, printed=True)] > PHASES[aim]:
            continue  # past it
        # Only the first half of the remaining visits, so that some are left for the next phases.
        nth = rng.randint(1, max((whole.times[aim] - seen[aim]) // 2, 1))
        # An undisturbed run never starts again.
        mean = whole.seconds[aim] / whole.times[aim] if whole.times[aim] else _START
        killed, phases = attempt(folder, aim, nth, rng.uniform(0, mean))
        seen += phases.times
        if killed is not None:
            kills.append(killed)
            print(f"killed at {killed}", flush=True)
    attempt(folder)
    return kills


def main(arguments: list[str]) -> None:
    """Kill, count and compare."""
    parser = argument_parser("python -m benchmarks.reliability.kills", __doc__)
    parser.add_argument("--times", type=int, default=100, help="kills in all, with those of an earlier tally")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--out", type=Path, default=RESULTS / "reliability", help="folder of the tally")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        return run(options.run)
    path = options.out / "kills.json"
    before: Any = json.loads(path.read_text()) if path.is_file() else {"kills": {}, "runs": 0}
    tally, runs = Counter[str](before["kills"]), before["runs"]
    rng = random.Random(f"{options.seed} {runs}")
    with tempfile.TemporaryDirectory() as name:
        _, whole = attempt(Path(name))
        expected = final_state(Path(name))
    while tally.total() < options.times:
        with tempfile.TemporaryDirectory() as name:
            tally.update(killed_run(Path(name), whole, rng))
            state, runs = final_state(Path(name)), runs + 1
        different = [
            key for key in expected | state if not np.array_equal(expected.get(key, ()), state.get(key, ()))
        ]
        if different:
            kills, names = tally.total(), ", ".join(different[:5])
            raise InputError(
                f"after {kills} kills: expected the undisturbed run's state, found other {names}"
            )
        print(f"run {runs}: same as undisturbed, {tally.total()} kills so far", flush=True)
        kept = {
            "kills": {name: tally[name] for name in PHASES},
            "runs": runs,
            "compared": len(expected),
            "seconds": round(sum(whole.seconds.values()), 1),
            "seed": options.seed,
            "machine": processor(),
            "versions": versions("jax", "flax", "orbax-checkpoint", "numpy"),
        }
        write_json(path, kept)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
