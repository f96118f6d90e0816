"""How fast qkd_jax is beside what people use today: every question, or some; and the page of the answers.

python -m benchmarks.speed [--only NAME …] [--rounds 7] [--out docs/results/speed]

Each question is a file here and a process of its own.  Its rows are kept in DIR/cpu or DIR/gpu, by what JAX
computes on, and the page beside DIR is written from all that are kept: on a machine with a GPU the same
command fills the rows that a CPU can't.  Peers come with the extra `peers`; what isn't installed is left out.
"""

import os
import subprocess
import sys
from pathlib import Path

from pydantic.dataclasses import dataclass

from benchmarks.speed.page import page
from qkd_jax.commands.cli import override, run_command
from qkd_jax.config.fields import Count
from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file

ONE, ALL = 1, 0
QUESTIONS = {
    "lstm": ALL,
    "quantized": ALL,
    "teacher": ALL,
    "distillation": ALL,
    "log_mel": ONE,
    "files": ALL,
    "evaluation": ALL,
    "single": ONE,
    "start": ALL,
    "growth": ALL,
}
"""Each question and the cores that it is answered on."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to ask, and where to keep the answers."""

    only: tuple[str, ...] = ()
    """Some of the questions; all by default."""
    rounds: Count = 7
    """How often each of those compared has its turn."""
    out: str = str(Path(__file__).parents[2] / "docs/results/speed")
    """Folder of what is kept; the page is DIR.md."""


def ask(name: str, settings: Settings) -> None:
    """Answer one question in a process of its own; raises InputError if that fails."""
    environment = dict(os.environ)
    told = (name, str(settings.rounds), settings.out, str(QUESTIONS[name]))
    if QUESTIONS[name] == ONE:
        environment |= dict.fromkeys(THREADS, "1")
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    command = [sys.executable, "-m", "benchmarks.speed.answer", *told]
    if status := subprocess.run(command, env=environment).returncode:
        raise InputError(f"{name}: ended with status {status}")


def main(arguments: list[str]) -> None:
    """Ask, and write the page."""
    settings = override(Settings(), arguments, prog="python -m benchmarks.speed", description=__doc__)
    for name in settings.only:
        if name not in QUESTIONS:
            raise InputError(f"--only: expected some of {', '.join(QUESTIONS)}, got {name!r}")
    for name in settings.only or QUESTIONS:
        ask(name, settings)
    out = Path(settings.out)
    with whole_file(out.with_suffix(".md"), "w") as file:
        file.write(page(out, tuple(QUESTIONS)))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
