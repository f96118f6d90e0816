"""Made-up results of models on made-up test scenes."""

import dataclasses
from pathlib import Path

import numpy as np

from benchmarks.common import EVENTS
from experiments.cells import Result, write_result
from qkd_jax.evaluation.metrics import evaluate


@dataclasses.dataclass(frozen=True)
class Made:
    """Scenes as kept at `scenes`, and the logits of each model and seed on them."""

    scenes: Path
    targets: np.ndarray
    sources: list[str]
    logits: dict[tuple[str, int], np.ndarray]
    names: list[str]


def make(folder: Path, separations: dict[str, float], seeds: dict[str, int] = {}) -> Made:  # noqa: B006
    """300 scenes from 10 recordings per event, and for each model positives apart from negatives so far."""
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 3)) < 0.3).astype(np.float32)
    sources = [
        ";".join(f"{event}=fs:{rng.integers(10)}" for event, held in zip(EVENTS, row) if held)
        for row in targets
    ]
    labels = [";".join(event for event, held in zip(EVENTS, row) if held) for row in targets]
    names = [f"{number}.flac" for number in range(300)]
    np.savez(folder / "scenes.npz", names=names, labels=labels, sources=sources)
    noise = rng.normal(0, 1, targets.shape)
    logits = {
        (name, seed): (separation * targets + noise + rng.normal(0, 0.5, noise.shape)).astype(np.float16)
        for name, separation in separations.items()
        for seed in range(seeds.get(name, 1))
    }
    return Made(folder / "scenes.npz", targets, sources, logits, names)


def write(made: Made, path: Path, name: str, seed: int = 0, **fields) -> None:
    """Write the result of a model, its clips in another order than the scenes."""
    logits = made.logits[name, seed]
    result = Result(metrics=evaluate(made.targets, logits.astype(np.float32), EVENTS), **fields)
    write_result(path / f"{name}-seed{seed}.json", result, made.names[::-1], EVENTS, logits[::-1])


def row(table: str, label: str) -> list[str]:
    """The cells of the table's row that begins with `label`."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {label} |")]
    return line.strip("| ").split(" | ")[1:]
