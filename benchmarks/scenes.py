"""The test scenes, and the errors of models on them with intervals that resample recordings."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.bootstrap import average_eer, resample
from benchmarks.standard import EVENTS, Cell, cell_path
from benchmarks.text import DASH, spread
from qkd_jax.data.logits import read_logits
from qkd_jax.data.tables import read_table

DRAWS = 1000
Cells = Mapping[str, Mapping[int, Cell]]


@dataclasses.dataclass(frozen=True)
class Scenes:
    """The test scenes: `names`, `targets` [scenes, events], and `sources` as `resample` takes them."""

    names: list[str]
    targets: np.ndarray
    sources: list[str]


def read_scenes(path: Path) -> Scenes:
    """The test scenes that a metadata.csv lists."""
    columns = ("filename", "labels", "split", "sources")
    rows = [row for _, row in read_table(path, columns, setting="--data") if row["split"] == "test"]
    targets = np.array([[event in row["labels"].split(";") for event in EVENTS] for row in rows], np.float32)
    return Scenes([row["filename"] for row in rows], targets, [row["sources"] for row in rows])


def read_test_logits(folder: Path, cells: Cells, scenes: Scenes) -> dict[str, list[np.ndarray]]:
    """Each cell's logits on the test scenes, [scenes, events] for each seed."""
    return {
        name: [
            read_logits(cell_path(folder, name, seed).with_suffix(".npz"), scenes.names, EVENTS)
            for seed in seeds
        ]
        for name, seeds in cells.items()
    }


def eer_draws(logits: Mapping[str, Sequence[np.ndarray]], scenes: Scenes) -> dict[str, np.ndarray]:
    """Each cell's average EER in percent, the mean over seeds, [draws]: of the same draws for all cells."""
    weights = resample(scenes.sources, DRAWS, 0)
    return {
        name: np.mean([average_eer(scenes.targets, values, weights) for values in seeds], axis=0)
        for name, seeds in logits.items()
    }


def validation(seeds: Mapping[int, Cell]) -> str:
    """AUC / EER on validation, of a cell's trained seeds; a dash if there are none."""
    trained = [cell.valid for cell in seeds.values() if cell.valid]
    return " / ".join(spread([row[key] for row in trained]) for key in ("auc", "eer") if trained) or DASH


def mean_eers(cells: Cells) -> dict[str, float]:
    """Each cell's average EER, the mean over seeds."""
    return {
        name: float(np.mean([cell.metrics["average"]["eer"] for cell in seeds.values()]))
        for name, seeds in cells.items()
    }
