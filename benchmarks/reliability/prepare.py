"""What it takes to prepare ten thousand to a million recordings, before the first train step.

    python -m benchmarks.reliability.prepare [--counts 10000 100000 1000000] [--no-teacher]

Recordings are tiny, a tenth of a second, so that the cost of each beside its features shows; a thousand of
them have all the names.  Processes share the work by their index over one folder, as with --distributed: they
list and divide the recordings, compute features and a tagger's logits, and the mean and deviation of the
training features.  One of them is killed in the first attempt; the second attempt continues; the third finds
nothing left to do.  Figures of other counts are kept.
"""

import argparse
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.common import RESULTS, ROOT, argument_parser, markdown, processor, versions, write_json
from benchmarks.speed.processes import peak
from qkd_jax.commands.cli import run_command
from qkd_jax.config import FeatureConfig, LSTMConfig, ManifestData, ModelConfig, RunConfig
from qkd_jax.errors import InputError

EVENTS, PROCESSES = ("dog", "bell"), 2
FEATURES = FeatureConfig(sample_rate=8000, win_length=200, hop_length=80, n_fft=256, n_mels=8, fmax=4000.0)
SAMPLES, POOL = 800, 1000
KILLED_AT = 0.3
"""Share of the features at which the last process is killed in the first attempt."""
MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
tagger (float[1, samples] waveform) => (float[1, 2] logits) <float[1, 2] gains = {1.0, -1.0}> {
    loudness = ReduceL2 <keepdims = 1> (waveform)
    logits = Mul (loudness, gains)
}
"""
TAGGER = 'file = "tagger.onnx"\nclasses = "classes.txt"\noutput = "logits"\nsample_rate = 8000\n'
TAGGER += '[events]\ndog = ["Dog"]\nbell = ["Bell"]\n'


def write_tagger(folder: Path) -> None:
    """Write a tagger whose logits measure how loud a recording is."""
    from onnx import parser

    (folder / "tagger.onnx").write_bytes(parser.parse_model(MODEL).SerializeToString())
    (folder / "classes.txt").write_text("Dog\nBell\n")
    (folder / "tagger.toml").write_text(TAGGER)


def write_recordings(root: Path, count: int) -> None:
    """Write `count` names of POOL recordings, and the manifest."""
    rng = np.random.default_rng(0)
    (root / "pool").mkdir(parents=True)
    for index in range(POOL):
        samples = rng.normal(0, 0.1, SAMPLES)
        soundfile.write(root / "pool" / f"{index}.wav", samples, FEATURES.sample_rate)
    with open(root / "metadata.csv", "w") as table:
        table.write("filename,labels\n")
        for index in range(count):
            name = f"audio/{index // 1000:04}/{index:07}.wav"
            if index % 1000 == 0:
                (root / name).parent.mkdir(parents=True)
            (root / name).symlink_to(root / "pool" / f"{index % POOL}.wav")
            table.write(f"{name},{';'.join(itertools.compress(EVENTS, (index % 2, index % 3)))}\n")


def config(folder: Path) -> RunConfig:
    """A run that is only prepared; its student learns from the tagger in `folder` if there is one."""
    tagger, runs = folder / "tagger.toml", str(folder / "runs")
    model = ModelConfig(network=LSTMConfig(), teachers=(str(tagger),) if tagger.is_file() else ())
    data = ManifestData(root=str(folder / "data"), events=EVENTS, clip_seconds=0.1)
    return RunConfig(name="run", runs=runs, features=FEATURES, data=data, models={"student": model})


def prepare(folder: Path) -> None:
    """What one process does; it leaves its figures in a file in `folder`."""
    from qkd_jax.run_folder.folder import open_run
    from qkd_jax.system.devices import join_processes
    from qkd_jax.training import clips

    join_processes()
    begun = time.monotonic()
    with open_run(config(folder)) as run:
        run.norm(clips.load(run)["train"].features)
    took = {"seconds": time.monotonic() - begun, "cpu": time.process_time(), "peak": peak()}
    (folder / f"took-{os.environ['JAX_PROCESS_ID']}.json").write_text(json.dumps(took))


def attempt(folder: Path, kill_at: int | None = None) -> list[dict[str, float]]:
    """Prepare in several processes; the figures of each, none if the last was killed at `kill_at` files."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address}
    environment |= {"JAX_NUM_PROCESSES": str(PROCESSES)}
    command = [sys.executable, "-m", "benchmarks.reliability.prepare", "--process", str(folder)]
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environment | {"JAX_PROCESS_ID": str(index)})
        for index in range(PROCESSES)
    ]
    if kill_at is not None:
        while len(written_at(folder)) < kill_at and all(process.poll() is None for process in running):
            time.sleep(0.5)
        running[-1].kill()
    statuses = [process.wait() for process in running]
    # When one is killed, all end.
    if any(statuses) if kill_at is None else statuses[-1] != -signal.SIGKILL or not all(statuses):
        raise InputError(f"{folder}: expected other statuses of the processes, found {statuses}")
    files = [] if kill_at else [folder / f"took-{index}.json" for index in range(PROCESSES)]
    return [json.loads(file.read_text()) for file in files]


def measured(folder: Path, count: int, *, teacher: bool) -> dict[str, Any]:
    """Prepare `count` recordings three times, killed the first time; raises InputError unless it adds up."""
    write_recordings(folder / "data", count)
    if teacher:
        write_tagger(folder)
    begun = time.monotonic()
    attempt(folder, int(KILLED_AT * count))
    killed_after, survived = time.monotonic() - begun, written_at(folder)
    first, complete, again = attempt(folder), written_at(folder), attempt(folder)
    asked = sum(len(np.load(path)) for path in (folder / "runs/run/teachers").glob("*.npy"))
    if len(complete) != count + asked or any(complete[entry] != at for entry, at in survived.items()):
        expected = f"{count + asked} entries, of which {len(survived)} survived"
        raise InputError(f"{folder}: expected {expected}, found {len(complete)}")
    if written_at(folder) != complete:
        raise InputError(f"{folder}: expected nothing to be written when there is nothing left to do")
    return {
        "recordings": count,
        "asked of a tagger": asked,
        "survived": len(survived),
        "killed after seconds": round(killed_after, 1),
        "made": len(complete) - len(survived),
        **_took(first, ""),
        **_took(again, " again"),
    }


def _took(processes: list[dict[str, float]], when: str) -> dict[str, float]:
    """Wall-clock time, CPU time of all processes together, and the most memory that one held."""
    return {
        f"seconds{when}": round(max(each["seconds"] for each in processes), 1),
        f"CPU seconds{when}": round(sum(each["cpu"] for each in processes), 1),
        f"peak MB{when}": round(max(each["peak"] for each in processes) / 1e6),
    }


def written_at(folder: Path) -> dict[str, int]:
    """When each whole entry of the cache was written."""
    entries = (folder / "runs/.features").glob("*/*.npy")
    return {
        each.name: each.stat().st_mtime_ns for each in entries if re.fullmatch(r"[0-9a-f]{30}", each.stem)
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as a table."""
    return markdown(list(rows[0]), [[f"{value:,}" for value in row.values()] for row in rows])


def main(arguments: list[str]) -> None:
    """Make the recordings, prepare them and keep the figures."""
    parser = argument_parser("python -m benchmarks.reliability.prepare", __doc__)
    add = parser.add_argument
    add("--counts", nargs="+", type=int, default=[10_000, 100_000, 1_000_000], help="recordings")
    add("--no-teacher", action="store_true", help="leave out the tagger")
    add("--out", type=Path, default=RESULTS / "reliability", help="folder of the figures")
    add("--process", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.process:
        return prepare(options.process)
    path = options.out / "prepare.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            row = measured(Path(folder), count, teacher=not options.no_teacher)
        others = [other for other in rows if other["recordings"] != count]
        rows = sorted([*others, row], key=lambda row: row["recordings"])
        libraries = versions("jax", "numpy", "soundfile", "onnxruntime")
        result = {"processes": PROCESSES, "machine": processor(), "versions": libraries, "rows": rows}
        write_json(path, result)
    print(table(rows))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
