"""The standard set and the paper's sizes, and what is kept of a trained model: what benchmarks share."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic.dataclasses import dataclass

from qkd_jax.commands.cli import load_preset
from qkd_jax.config import RunConfig, from_json, to_json, with_data
from qkd_jax.data.logits import write_logits
from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file

_ROOT = Path(__file__).parents[1]
CELLS = _ROOT / "docs/results/paper/cells"
TEACHER_LOGITS = CELLS / "teacher-seed0.npz"  # on all scenes
EVENTS = ("dog", "baby_cry", "gunshot")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is kept of a model trained with one seed; what is not known of one from elsewhere is None."""

    bytes: int
    metrics: dict[str, dict[str, float]]
    """AUC and EER on the test scenes, in percent (see `evaluate`)."""
    parameters: int | None = None
    multiply_adds: int | None = None
    valid: dict[str, float] | None = None
    """Average AUC and EER of the best epoch on validation."""
    best_epoch: int | None = None
    """Number of that epoch, from 1."""
    epochs: int | None = None
    """Epochs trained."""
    scenes: int | None = None
    """Scenes trained on."""
    teacher: str = ""
    """File of the logits it was distilled from."""
    seconds: float | None = None
    """From the start of its run to its scores; None if the run was stopped in between."""


def standard_config(data: str, out: str) -> Config:
    """Preset `paper` without students, on the recordings in `data`, its runs in `out`; raises InputError."""
    if not data:
        raise InputError("--data: expected the folder of the recordings, got none")
    base = dataclasses.replace(load_preset("paper", _ROOT / "configs"), runs=out, students={})
    return with_data(base, root=data, events=EVENTS)


def taught_by(config: RunConfig, *teachers: Path) -> Config:
    """`config` with the teachers whose logits, or descriptions, are in files."""
    distill = dataclasses.replace(config.distill, teachers=tuple(str(file.absolute()) for file in teachers))
    return dataclasses.replace(config, distill=distill)


def cell_path(folder: Path, name: str, seed: int) -> Path:
    """Where `folder` has the figures of cell `name`; its logits lie beside, as .npz."""
    return folder / f"{name}-seed{seed}.json"


def write_cell(
    path: Path, cell: Cell, names: Sequence[str], events: Sequence[str], logits: np.ndarray
) -> None:
    """Keep `cell` at `path` (see `cell_path`), and its `logits` [scenes, events], those on test included."""
    write_logits(path.with_suffix(".npz"), names, events, logits)
    with whole_file(path, "w") as file:  # last, for it says that the cell is done
        file.write(to_json(cell) + "\n")


def read_cells(folder: Path) -> dict[str, dict[int, Cell]]:
    """The cells in `folder` by name and seed; raises InputError if one is damaged."""
    found: dict[str, dict[int, Cell]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        name, _, seed = path.stem.rpartition("-seed")
        found.setdefault(name, {})[int(seed)] = from_json(Cell, path.read_text(), str(path))
    return found
