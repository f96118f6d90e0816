"""The test scenes of the standard set, and errors on them with intervals over recordings."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import DASH, EVENTS, RESULTS, spread
from experiments.bootstrap import average_eer, resample
from experiments.cells import Result, Results
from qkd_jax.data.arrays import read_npz
from qkd_jax.data.logits import read_logits

DRAWS = 1000
SCENES = RESULTS / "standard-test.npz"
"""Names, labels and sources of the test scenes, from the standard set's metadata.csv."""


@dataclasses.dataclass(frozen=True)
class Scenes:
    """The test scenes: `names`, `targets` [scenes, events], and `sources` as `resample` takes them."""

    names: list[str]
    targets: np.ndarray
    sources: list[str]


def read_scenes(path: Path = SCENES) -> Scenes:
    """The test scenes that are kept at `path`."""
    text = ("U", 1)
    names, labels, sources = read_npz(path, "test scenes", names=text, labels=text, sources=text)
    targets = np.array([[event in each.split(";") for event in EVENTS] for each in labels], np.float32)
    return Scenes(names.tolist(), targets, sources.tolist())


def read_test_logits(folder: Path, results: Results, scenes: Scenes) -> dict[str, list[np.ndarray]]:
    """The logits of each result on the test scenes, [scenes, events] for each seed."""
    return {
        name: [read_logits(folder / f"{name}-{part}.npz", scenes.names, EVENTS) for part in parts]
        for name, parts in results.items()
    }


def eer_draws(logits: Mapping[str, Sequence[np.ndarray]], scenes: Scenes) -> dict[str, np.ndarray]:
    """The average EER in percent of each model, the mean over seeds, [draws]; all share the same draws."""
    weights = resample(scenes.sources, DRAWS, 0)
    return {
        name: np.mean([average_eer(scenes.targets, values, weights) for values in seeds], axis=0)
        for name, seeds in logits.items()
    }


def validation(parts: Mapping[str, Result]) -> str:
    """AUC / EER on validation over the trained seeds of a model; a dash if there are none."""
    trained = [result.valid for result in parts.values() if result.valid]
    return " / ".join(spread([row[key] for row in trained]) for key in ("auc", "eer") if trained) or DASH


def mean_eers(results: Results) -> dict[str, float]:
    """The average EER of each model, the mean over seeds."""
    return {
        name: float(np.mean([result.metrics["average"]["eer"] for result in parts.values()]))
        for name, parts in results.items()
    }
