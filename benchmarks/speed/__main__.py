"""How fast qkd_jax is beside what people use today: measure, and write the page of the answers.

    python -m benchmarks.speed [--only NAME …] [--rounds 7] [--out docs/results/speed]
    python -m benchmarks.speed --quick
    python -m benchmarks.speed --page

Each question is answered in a process of its own.  Its rows are kept in a folder of OUT that is named after
the device that JAX uses, and fill the marked parts of OUT.md, which shows each device.  Peers that aren't
installed (extra `peers`) are left out.  `--quick` answers the questions about train steps within six minutes,
in fewer rounds: on a machine with a GPU it fills the rows that a CPU can't.
"""

import argparse
import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import DASH, RESULTS, argument_parser, fill, markdown, processor, versions, write_json
from benchmarks.speed.measure import DEADLINE, Row
from qkd_jax.commands.cli import run_command
from qkd_jax.errors import InputError


class Question(NamedTuple):
    """Where the function rounds -> rows is, the packages whose versions matter, and how it is measured."""

    module: str
    function: str
    packages: tuple[str, ...]
    one_core: bool = False
    quick: int = 0
    """For a question about train steps, which a GPU answers too, its seconds in --quick."""


QUESTIONS = {
    "lstm": Question("lstm", "float_rows", ("flax", "torch"), quick=80),
    "quantized": Question("lstm", "quantized_rows", ("flax", "torch"), quick=90),
    "student": Question("student", "rows", ("flax", "optax")),
    "teacher": Question("teacher", "teacher_rows", ("torch",), quick=110),
    "distillation": Question("teacher", "distillation_rows", ("flax", "optax"), quick=70),
    "log_mel": Question("features", "hour_rows", ("librosa", "kaldi-native-fbank"), one_core=True),
    "files": Question("features", "file_rows", ("librosa", "soundfile")),
    "single": Question(
        "detector", "rows", ("numpy", "onnxruntime", "torch", "ai-edge-litert"), one_core=True
    ),
    "runtimes": Question("runtimes", "rows", ("numpy", "onnxruntime", "ai-edge-litert"), one_core=True),
    "start": Question("processes", "start_rows", ("flax", "optax", "numpy", "soundfile", "onnxruntime")),
    "growth": Question("processes", "growth_rows", ("flax", "optax", "grain", "numpy", "soundfile")),
}
QUICK_ROUNDS = 3
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
COLUMNS = ("what", "qkd_jax", "time", "peer", "its time", "times as fast", "goal", "off", "")


def ask(name: str, rounds: int, out: Path, seconds: int | None = None) -> None:
    """Answer one question in a process of its own; raises InputError if it fails.

    With `seconds`, no further round or peer begins after 60 % of them, and it is stopped at their end; the
    rows until then are kept.
    """
    environment = dict(os.environ)
    if QUESTIONS[name].one_core:
        environment |= dict.fromkeys(THREADS, "1")
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    if seconds:
        environment[DEADLINE] = str(time.time() + 0.6 * seconds)
    command = [sys.executable, "-m", "benchmarks.speed", "--answer", name, "--rounds", str(rounds)]
    try:
        done = subprocess.run([*command, "--out", str(out)], env=environment, timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped after {seconds} s; the rows until then are kept", flush=True)
        return
    if done.returncode:
        raise InputError(f"{name}: ended with status {done.returncode}")


def answer(name: str, rounds: int, out: Path) -> None:
    """Answer one question in this process, and keep its rows below `out` as they come."""
    question = QUESTIONS[name]
    if question.one_core and sys.platform == "linux":
        # Before JAX counts the cores for its threads.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    module = importlib.import_module(f"benchmarks.speed.{question.module}")
    import jax

    result: dict[str, Any] = {
        "machine": processor(),
        "device": jax.devices()[0].device_kind,
        "versions": f"Python {sys.version.split()[0]}, {versions('jax', *question.packages)}",
        "rows": [],
    }
    path = out / _folder(result["machine"], result["device"]) / f"{name}.json"
    for row in getattr(module, question.function)(rounds):
        result["rows"].append(dataclasses.asdict(row))
        write_json(path, result)
        print(f"{name}: {row}", flush=True)


def _folder(machine: str, device: str) -> str:
    """A name for the folder of a device's answers: that of the GPU, or else of the processor.

    >>> _folder("Intel(R) Xeon(R) Processor, 2 cores", "cpu"), _folder("AMD EPYC, 1 core", "NVIDIA H200")
    ('intel-xeon-processor', 'nvidia-h200')
    """
    name = machine.partition(",")[0] if device == "cpu" else device
    return "-".join(re.findall(r"\w+", name.lower().replace("(r)", "")))


def parts(folder: Path) -> dict[str, str]:
    """The marked parts of the page, one per question, from the answers in `folder`."""
    return {name: _answers(folder, name) for name in QUESTIONS}


def _answers(folder: Path, name: str) -> str:
    """The tables of a question, one for each device that has answered it."""
    answers = [json.loads(path.read_text()) for path in sorted(folder.glob(f"*/{name}.json"))]
    texts = [
        f"{each['device']}: {each['machine']}; {each['versions']}.\n\n"
        + markdown(COLUMNS, [table_row(Row(**row)) for row in each["rows"]])
        for each in answers
    ]
    if all(each["device"] == "cpu" for each in answers):
        texts.append("On a GPU: not measured." if answers else "Not measured yet.")
    return "\n\n".join(texts)


def table_row(row: Row) -> list[str]:
    """A row of a table."""
    ratio, goal, theirs = DASH, DASH, DASH
    if row.peer_seconds:
        middle, low, high = map(_digits, row.times_as_fast)
        ratio, theirs = f"{middle} ({low} to {high})", _time(np.median(row.peer_seconds))
    if row.met is not None:
        goal = f"≥ {_digits(row.at_least)}" if row.at_least is not None else f"≤ {_time(row.at_most)}"
        goal += ": met" if row.met else ": missed"
    off, peer = DASH if row.off is None else f"{row.off:.1g}", row.peer or DASH
    return [row.what, row.ours, _time(np.median(row.seconds)), peer, theirs, ratio, goal, off, row.note]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _time(seconds: Any) -> str:
    unit, size = next((each for each in UNITS if seconds >= each[1]), UNITS[-1])
    return f"{_digits(seconds / size)} {unit}"


def main(arguments: list[str]) -> None:
    """Ask, and write the page."""
    parser = argument_parser("python -m benchmarks.speed", __doc__)
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, help="which questions; all by default")
    parser.add_argument("--rounds", type=int, default=7, help="how often each of those compared has its turn")
    parser.add_argument("--quick", action="store_true", help="only train steps, within six minutes")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed", help="folder of the answers")
    parser.add_argument("--answer", choices=QUESTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.answer:
        return answer(options.answer, options.rounds, options.out)
    names = options.only or [name for name, each in QUESTIONS.items() if each.quick or not options.quick]
    rounds = min(options.rounds, QUICK_ROUNDS) if options.quick else options.rounds
    for name in [] if options.page else names:
        ask(name, rounds, options.out, QUESTIONS[name].quick or None if options.quick else None)
    page = options.out.with_suffix(".md")
    if not page.exists():
        shutil.copy(RESULTS / "speed.md", page)
    fill(page, parts(options.out))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
