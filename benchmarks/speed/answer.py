"""Answers one question in this process: what `python -m benchmarks.speed` calls.

A question is a module here with QUESTION (a title), ABOUT (what is computed, and how the two sides are known
to agree), PACKAGES (whose versions count) and `rows(rounds)`.
"""

import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks.speed.turns import processor, versions
from qkd_jax.commands.cli import run_command
from qkd_jax.system.files import whole_file


def main(arguments: list[str]) -> None:
    """Answer question NAME in so many ROUNDS, and write what was found below OUT."""
    name, rounds, out, cores = arguments
    if cores == "1" and sys.platform == "linux":
        # Before JAX counts what its threads may run on.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    question = importlib.import_module(f"benchmarks.speed.{name}")
    import jax

    answer = {
        "question": question.QUESTION,
        "about": question.ABOUT,
        "machine": processor(),
        "device": jax.devices()[0].device_kind,
        "versions": f"Python {sys.version.split()[0]}, {versions('jax', *question.PACKAGES)}",
        "rows": [],
    }
    path = Path(out) / jax.default_backend() / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    for row in question.rows(int(rounds)):
        answer["rows"].append(dataclasses.asdict(row))
        print(f"{name}: {row}", flush=True)
    with whole_file(path, "w") as file:
        file.write(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
