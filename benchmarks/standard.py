"""The standard set and the paper's sizes: what the benchmarks that train have in common."""

import dataclasses
from pathlib import Path

from qkd_jax.command import load_preset
from qkd_jax.config import Config, InputError, with_data

_ROOT = Path(__file__).parents[1]
TEACHER_LOGITS = _ROOT / "docs/results/standard/teacher-logits.npz"


def standard_config(data: str, out: str) -> Config:
    """Preset `paper` without students, on the recordings in `data`, its runs in `out`; raises InputError."""
    if not data:
        raise InputError("--data: expected the folder of the recordings, got none")
    base = dataclasses.replace(load_preset("paper", _ROOT / "configs"), runs=out, students={})
    return with_data(base, root=data, events=("dog", "baby_cry", "gunshot"))


def taught_by(config: Config, logits: Path) -> Config:
    """`config` with the teacher whose logits are in a file."""
    distill = dataclasses.replace(config.distill, teachers=(str(logits.absolute()),))
    return dataclasses.replace(config, distill=distill)
