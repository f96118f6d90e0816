"""Kill a run again and again, and compare its final state with that of an undisturbed one.

    python -m benchmarks.reliability.kills [--times 100] [--seed 0] [--out docs/results/reliability]

A small run makes its recordings, trains a teacher and three students, is scored, writes its report, and
exports its integers to a file.  In each phase it is killed by SIGKILL, at a moment drawn from the time that
an undisturbed run spends there, and the same command is given again each time.  The last attempt is left
alone, and the next run begins, until there are enough kills.
"""

import argparse
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

import qkd_jax
from benchmarks.common import RESULTS, ROOT, argument_parser, processor, versions, write_json
from qkd_jax.commands.cli import load_preset, run_command
from qkd_jax.config import ClipRecipe, DemoData, DenseNetConfig, LSTMConfig, RunConfig
from qkd_jax.errors import InputError
from qkd_jax.run_folder import checkpoints
from qkd_jax.run_folder.folder import load_run

EXPORTED = "distilled-8"
CLIPS, BATCH, EPOCHS = 96, 16, 4
LAST_STEP = CLIPS // BATCH * EPOCHS
PHASES = {"recordings": 0, "features": 1, "steps": 2, "start, again": 2, "a checkpoint": 2}
PHASES |= {"evaluation": 3, "report": 4, "export": 5}
"""The phases in the order of a run; those with one number alternate."""
_START = 400
"""Looks at a start."""
KEPT = "models/*/log.jsonl models/*/logits-*.npz models/teacher/teaching.npz results.json *.safetensors"


def small(folder: Path) -> RunConfig:
    """Preset demo, so small that a run takes half a minute."""
    demo = load_preset("demo")
    models = {}
    for name in ("teacher", "plain", "distilled", EXPORTED):
        model = demo.models[name]
        network: Any = DenseNetConfig(blocks=(1, 1), growth=4, stem=4)
        if isinstance(model.network, LSTMConfig):
            network = dataclasses.replace(model.network, convolutions=(4, 4, 4), hidden_size=8)
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
    for path in (path for pattern in KEPT.split() for path in finished.folder.glob(pattern)):
        arrays[str(path.relative_to(finished.folder))] = np.frombuffer(path.read_bytes(), np.uint8)
    return arrays


def attempt(folder: Path, aim: str = "", looks: int = 0) -> tuple[bool, Counter[str]]:
    """Start the run, look at its phase every hundredth of a second, and kill it after `looks` at phase `aim`.

    Returns whether it was killed, not ended, and the number of looks at each phase.  Raises InputError if the
    run fails.
    """
    command = [sys.executable, "-u", "-m", "benchmarks.reliability.kills", "--run", str(folder)]
    seen = Counter[str]()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            at = phase(folder, printed=output.seek(0, os.SEEK_END) > 0)
            seen[at] += 1
            if at == aim and seen[at] > looks:
                process.kill()
                process.wait()
            time.sleep(0.01)
        output.seek(0)
        if process.returncode not in (0, -signal.SIGKILL):
            found = f"{process.returncode}: {output.read().decode()}"
            raise InputError(f"{folder}: expected the run to end or be killed, found status {found}")
    return process.returncode != 0, seen


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


def killed_run(folder: Path, whole: Counter[str], rng: random.Random) -> Counter[str]:
    """Kill a run once per phase that it still reaches, then let it end; the phases in which it was killed."""
    kills = Counter[str]()
    for aim in (aim for aim in PHASES if PHASES[phase(folder, printed=True)] <= PHASES[aim]):
        # In its first half, so that some is left for the next phase; only a resumed run starts again.
        killed, _ = attempt(folder, aim, rng.randrange(1 + (whole[aim] or _START) // 2))
        kills[aim] += killed
    attempt(folder)
    return kills


def main(arguments: list[str]) -> None:
    """Kill, count and compare."""
    parser = argument_parser("python -m benchmarks.reliability.kills", __doc__)
    parser.add_argument("--times", type=int, default=100, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--out", type=Path, default=RESULTS / "reliability", help="folder of the tally")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        return run(options.run)
    tally, runs, rng = Counter[str](), 0, random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        begun, (_, whole) = time.monotonic(), attempt(Path(name))
        seconds = round(time.monotonic() - begun, 1)
        expected = final_state(Path(name))
    while tally.total() < options.times:
        with tempfile.TemporaryDirectory() as name:
            tally.update(killed_run(Path(name), whole, rng))
            state, runs = final_state(Path(name)), runs + 1
        names = expected | state
        if odd := [key for key in names if not np.array_equal(expected.get(key, ()), state.get(key, ()))]:
            raise InputError(
                f"after {tally.total()} kills: expected the undisturbed run's state, found other {odd[:5]}"
            )
        print(f"run {runs}: same as undisturbed, {tally.total()} kills so far", flush=True)
    kept = {
        "kills": {name: tally[name] for name in PHASES},
        "runs": runs,
        "compared": len(expected),
        "seconds": seconds,
        "seed": options.seed,
        "machine": processor(),
        "versions": versions("jax", "flax", "orbax-checkpoint", "numpy"),
    }
    write_json(options.out / "kills.json", kept)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
