"""What it takes to prepare ten thousand to a million recordings, before the first train step.

python -m benchmarks.reliability.prepare [--counts 10000 100000 1000000] [--processes 2] [--out FOLDER]

Recordings are tiny, a tenth of a second, so that what each takes beside features shows; a thousand of them
have so many names.  Processes share the work by their index over one folder, as with --distributed: they list
and divide the recordings, compute features and a tagger's logits, and the training features' mean and
deviation.  One of them is killed in the first attempt; a second goes on; a third finds nothing left to do.
Figures of other counts are kept.
"""

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
from pydantic.dataclasses import dataclass

from benchmarks.speed.growth import peak
from benchmarks.speed.turns import processor, versions
from benchmarks.text import markdown
from qkd_jax.commands.cli import override, run_command
from qkd_jax.config import TRAINED, DataConfig, DistillConfig, FeatureConfig, RunConfig
from qkd_jax.config.fields import Count
from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file

ROOT = Path(__file__).parents[2]
EVENTS = ("dog", "bell")
FEATURES = FeatureConfig(sample_rate=8000, win_length=200, hop_length=80, n_fft=256, n_mels=8, fmax=4000.0)
SAMPLES, POOL = 800, 1000
KILLED_AT = 0.3
"""Of the features: when the last process is killed in the first of three attempts."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to prepare, and where to keep what it took."""

    counts: tuple[Count, ...] = (10_000, 100_000, 1_000_000)
    """Recordings."""
    processes: Count = 2
    """That share the work."""
    teacher: bool = True
    """Whether a tagger is asked, too."""
    out: str = str(ROOT / "docs/results/reliability")
    """Folder of the figures."""


def write_tagger(folder: Path) -> Path:
    """A tagger that says how loud a recording is."""
    from onnx import TensorProto, helper, save

    def info(name: str, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    gains = helper.make_tensor("gains", TensorProto.FLOAT, [1, 2], [1.0, -1.0])
    nodes = [
        helper.make_node("ReduceL2", ["waveform"], ["loudness"], keepdims=1),
        helper.make_node("Mul", ["loudness", "gains"], ["logits"]),
    ]
    inputs, outputs = [info("waveform", [1, "samples"])], [info("logits", [1, 2])]
    graph = helper.make_graph(nodes, "tagger", inputs, outputs, [gains])
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        folder / "tagger.onnx",
    )
    (folder / "classes.txt").write_text("Dog\nBell\n")
    path = folder / "tagger.toml"
    path.write_text(
        'file = "tagger.onnx"\nclasses = "classes.txt"\noutput = "logits"\nsample_rate = 8000\n'
        '[events]\ndog = ["Dog"]\nbell = ["Bell"]\n'
    )
    return path


def write_recordings(root: Path, count: int) -> None:
    """`count` names of POOL recordings, and the manifest."""
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


def config(folder: Path) -> Config:
    """A run that is only prepared, taught by the tagger in `folder` if there is one."""
    tagger = folder / "tagger.toml"
    return RunConfig(
        name="run",
        runs=str(folder / "runs"),
        features=FEATURES,
        data=DataConfig(root=str(folder / "data"), events=EVENTS, clip_seconds=0.1),
        distill=DistillConfig(teachers=(str(tagger) if tagger.is_file() else TRAINED,)),
    )


def prepare(folder: Path) -> None:
    """What one process does; what it took is in a file in `folder` then."""
    from qkd_jax.run_folder.folder import open_run
    from qkd_jax.system.devices import join_processes
    from qkd_jax.training.run import prepare

    join_processes()
    begun = time.monotonic()
    with open_run(config(folder)) as run:
        prepare(run)
    took = {"seconds": time.monotonic() - begun, "cpu": time.process_time(), "peak": peak()}
    (folder / f"took-{os.environ['JAX_PROCESS_ID']}.json").write_text(json.dumps(took))


def attempt(folder: Path, processes: int, kill_at: int | None = None) -> list[dict[str, float]]:
    """Prepare in so many processes; what each took, none if the last was killed at `kill_at` files."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
    }
    command = [sys.executable, "-m", "benchmarks.reliability.prepare", "process", str(folder)]
    all_of_them = [
        subprocess.Popen(command, cwd=ROOT, env=environment | {"JAX_PROCESS_ID": str(index)})
        for index in range(processes)
    ]
    if kill_at is not None:
        while kept(folder) < kill_at and all(process.poll() is None for process in all_of_them):
            time.sleep(0.5)
        all_of_them[-1].kill()
    statuses = [process.wait() for process in all_of_them]
    if kill_at is not None:
        if statuses[-1] != -signal.SIGKILL or not all(statuses):
            raise InputError(f"{folder}: expected all to end when one is killed, found statuses {statuses}")
        return []
    if any(statuses):
        raise InputError(f"{folder}: expected processes to end well, found statuses {statuses}")
    return [json.loads((folder / f"took-{index}.json").read_text()) for index in range(processes)]


def kept(folder: Path) -> int:
    """How many entries the cache has."""
    return sum(len(os.listdir(part)) for part in (folder / "runs/.features").glob("*"))


def measured(folder: Path, count: int, processes: int, *, teacher: bool) -> dict[str, Any]:
    """Prepare `count` recordings thrice, the first time killed; raises InputError unless it all adds up."""
    write_recordings(folder / "data", count)
    if teacher:
        write_tagger(folder)
    begun = time.monotonic()
    attempt(folder, processes, int(KILLED_AT * count))
    killed_after, survived = time.monotonic() - begun, newest(folder)
    first = attempt(folder, processes)
    complete = newest(folder)
    again = attempt(folder, processes)
    asked = sum(map(len, np.load(folder / "runs/run/foreign.npy")))  # the training recordings
    if len(complete) != count + asked or any(complete[entry] != at for entry, at in survived.items()):
        raise InputError(
            f"{folder}: expected {count + asked} entries, of which {len(survived)} survived, "
            f"found {len(complete)}"
        )
    if newest(folder) != complete:
        raise InputError(f"{folder}: expected nothing to be written where there is nothing left to do")
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
    """On the clock, and of all processors together; what one process held at most."""
    return {
        f"seconds{when}": round(max(each["seconds"] for each in processes), 1),
        f"CPU seconds{when}": round(sum(each["cpu"] for each in processes), 1),
        f"peak MB{when}": round(max(each["peak"] for each in processes) / 1e6),
    }


def newest(folder: Path) -> dict[str, int]:
    """When each entry of the cache was written, of what is no half of one."""
    return {
        entry.name: entry.stat().st_mtime_ns
        for part in os.scandir(folder / "runs/.features")
        for entry in os.scandir(part)
        if re.fullmatch(r"[0-9a-f]{30}\.npy", entry.name)
    }


def main(arguments: list[str]) -> None:
    """Make, prepare, count."""
    if arguments[:1] == ["process"]:
        return prepare(Path(arguments[1]))
    prog = "python -m benchmarks.reliability.prepare"
    settings = override(Settings(), arguments, prog=prog, description=__doc__)
    path = Path(settings.out) / "prepare.json"
    before = json.loads(path.read_text())["rows"] if path.is_file() else []
    for count in settings.counts:
        with tempfile.TemporaryDirectory() as folder:
            row = measured(Path(folder), count, settings.processes, teacher=settings.teacher)
        before = [other for other in before if other["recordings"] != count]
        rows = before = sorted([*before, row], key=lambda row: row["recordings"])
        print(json.dumps(row), flush=True)
        result = {
            "processes": settings.processes,
            "machine": processor(),
            "versions": versions("jax", "numpy", "soundfile", "onnxruntime"),
            "rows": rows,
        }
        with whole_file(path, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")
    print(markdown(list(rows[0]), [[f"{value:,}" for value in row.values()] for row in rows]))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
