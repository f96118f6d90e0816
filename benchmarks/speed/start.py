"""How soon: the first line of detect.py, imports, and compiled train steps."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from benchmarks.speed.turns import Row, agree, in_turns
from qkd_jax.audio import log_mel_numpy as front_end
from qkd_jax.config import (
    DataConfig,
    DistillConfig,
    LSTMConfig,
    QuantConfig,
    RunConfig,
    TeacherConfig,
    TrainConfig,
)
from qkd_jax.detector import file as artefact
from qkd_jax.detector import reference
from qkd_jax.detector.detector import Detector
from qkd_jax.errors import InputError
from qkd_jax.models.build import build_model
from qkd_jax.models.lstm_integer import calibrate, to_detector
from qkd_jax.run_folder.state import TrainState, init_state, make_optimizer
from qkd_jax.runtimes import onnx
from qkd_jax.training.step import make_loss, make_train_step

QUESTION = "Start-up and compilation"
ABOUT = """From the start of a process to the first line of `detect.py`, when libraries and model are
loaded; a script beside it imports soundfile and ONNX Runtime, opens the same detector and prints a logit
of a second of noise, which is our reference's. Processes that import and end. Tracing and compiling a
train step in a process of its own, without a cache."""
PACKAGES = ("flax", "optax", "numpy", "soundfile", "onnxruntime")
ROOT = Path(__file__).parents[2]
EVENTS = ("dog", "baby_cry", "gunshot")
SHAPE = (64, 998, 64)
FIRST_LINE = 1.0
"""Goal: seconds."""
IMPORTS = {"import qkd_jax": 0.2, "from qkd_jax import lstm_scan": 0.2, "from qkd_jax import *": None}
"""What to import, and the goal: so many seconds more than JAX."""
COMPILED: dict[str, tuple[LSTMConfig | TeacherConfig, float | None]] = {
    "the paper's student, 8 bits": (LSTMConfig(quant=QuantConfig.paper(8)), 15.0),
    "DenseNet-63": (TeacherConfig(), None),
}
"""Whose train steps to compile, and the goal: seconds."""
COMPILATIONS = 3
"""At most so many of each."""
CLOSE = 0.02
"""Of the logit: front ends differ in a float's last bit, which at times turns an input's code."""
SCRIPT = """
import sys, onnxruntime, soundfile
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
waveform, _ = soundfile.read(sys.argv[2], dtype="float32")
print(session.run(["logits"], {"waveform": waveform})[0][0], flush=True)
"""


def untrained(student: LSTMConfig, x: np.ndarray) -> tuple[Detector, Any]:
    """A detector calibrated on `x`, float32 [frames, mels], and its parameters in float."""
    variables = dict(jax.jit(build_model(student, len(EVENTS)).init)(jax.random.key(0), x[None]))
    exponents = calibrate(student, variables, [x[None]])
    config = RunConfig(data=DataConfig(events=EVENTS))
    return to_detector(config, student, variables | {"exponents": exponents}), variables["params"]


def train_step(
    network: LSTMConfig | TeacherConfig, shape: tuple[int, int, int]
) -> tuple[Any, Callable[[], TrainState], dict[str, np.ndarray]]:
    """The step of `network` for features [batch, frames, mels], what makes a state, and a batch."""
    batch, frames, mels = shape
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=(batch, len(EVENTS))).astype(np.float32)
    examples = {
        "features": rng.normal(size=shape).astype(np.float32),
        "labels": labels,
        "teacher_logits": labels,
    }

    known = None if isinstance(network, TeacherConfig) else np.ones(len(EVENTS), bool)
    loss = make_loss(DistillConfig(), jnp.ones(len(EVENTS)), known)
    model, optimizer = build_model(network, len(EVENTS)), make_optimizer(TrainConfig(), 1e-3, 1000)
    norm = (np.zeros(mels), np.ones(mels))
    step = make_train_step(model, optimizer, loss)
    return step, lambda: init_state(model, optimizer, (frames, mels), norm, 0), examples


def compile_seconds(name: str, shape: tuple[int, int, int]) -> tuple[float, float]:
    """Of the train step of one of `COMPILED`: seconds to trace it, and to compile it."""
    step, new_state, batch = train_step(COMPILED[name][0], shape)
    state = jax.eval_shape(new_state)
    begun = time.perf_counter()
    lowered = step.lower(state, batch)
    traced = time.perf_counter()
    lowered.compile()
    return traced - begun, time.perf_counter() - traced


def compiled_anew(name: str, shape: tuple[int, int, int]) -> tuple[float, float]:
    """`compile_seconds` in a process of its own."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-m", "benchmarks.speed.start", name, *map(str, shape)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"compiling {name}: ended with status {done.returncode}")
    traced, compiled = json.loads(done.stdout)
    return traced, compiled


def first_line(command: Sequence[str]) -> str:
    """What `command` says first; it is then killed.  Raises InputError if it says nothing."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        process.kill()
    if not line:
        raise InputError(f"{' '.join(command)}: expected a line, it ended with status {process.returncode}")
    return line


def starts(rounds: int) -> Iterator[Row]:
    """detect.py beside a script of ONNX Runtime."""
    rng = np.random.default_rng(0)
    student = LSTMConfig(quant=QuantConfig.integer(8))
    detector, _ = untrained(student, rng.normal(size=(100, 64)).astype(np.float32))
    rate, waveform = detector.features.sample_rate, rng.uniform(-0.5, 0.5, 16_000).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        soundfile.write(folder / "noise.wav", waveform, rate, subtype="FLOAT")
        artefact.save(detector, folder / "detector.safetensors")
        ours = [sys.executable, "detect.py", f"{folder}/detector.safetensors", f"{folder}/noise.wav"]
        calls, off = {"ours": lambda: first_line(ours)}, None
        if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
            onnx.save(onnx.clip_model(detector), folder / "detector.onnx")
            theirs = [sys.executable, "-c", SCRIPT, f"{folder}/detector.onnx", f"{folder}/noise.wav"]
            codes = reference.input_codes(detector, front_end.log_mel(detector.features, waveform))
            expected = reference.clip_logits(detector, codes)
            off = agree("the script", expected[:1], [float(first_line(theirs))], CLOSE)
            calls["script"] = lambda: first_line(theirs)
        seconds = in_turns(calls, rounds)
    yield Row(
        what="256 units, 8 bits: to the first line",
        ours="detect.py",
        peer="a script with ONNX Runtime" if "script" in seconds else None,
        seconds=seconds["ours"],
        peer_seconds=seconds.get("script", ()),
        off=off,
        at_most=FIRST_LINE,
    )


def imports(rounds: int) -> Iterator[Row]:
    """Whole processes that import qkd_jax, or JAX."""
    commands = {line: [sys.executable, "-c", line] for line in (*IMPORTS, "import jax")}

    def call(command: list[str]) -> Callable[[], Any]:
        return lambda: subprocess.run(command, cwd=ROOT, check=True)

    seconds = in_turns({line: call(command) for line, command in commands.items()}, rounds)
    theirs = seconds.pop("import jax")
    own = float(np.median(theirs))
    for line, mine in seconds.items():
        more = IMPORTS[line]
        yield Row(
            what="a process that imports",
            ours=line,
            peer="import jax",
            seconds=mine,
            peer_seconds=theirs,
            at_most=None if more is None else own + more,
            note=f"{np.median(mine) - own:+.2f} s",
        )


def rows(rounds: int, shape: tuple[int, int, int] = SHAPE) -> Iterator[Row]:
    """Starts, imports, compilations."""
    yield from starts(rounds)
    yield from imports(rounds)
    for name, (_, most) in COMPILED.items():
        found = [compiled_anew(name, shape) for _ in range(min(rounds, COMPILATIONS))]
        yield Row(
            what=f"train step of {name}, {' × '.join(map(str, shape))}: to be compiled",
            ours="make_train_step",
            seconds=[sum(each) for each in found],
            note=f"{np.median([traced for traced, _ in found]):.1f} s of them to trace",
            at_most=most,
        )


if __name__ == "__main__":
    _, network, *sizes = sys.argv
    batch, frames, mels = map(int, sizes)
    print(json.dumps(compile_seconds(network, (batch, frames, mels))))
