"""What the paper leaves open, one change at a time, compared on validation.

The base is the paper's distilled float student with 64 units, which learns from the committed logits of
the standard set's teacher; the main student has 256 units and takes six times as long.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import EVENTS, markdown
from experiments.cells import Cell, read_results
from experiments.paper import TEACHER_LOGITS
from qkd_jax.config import ClipRecipe, LSTMConfig, ManifestData, ModelConfig, QuantConfig, RunConfig

FOUR_BITS = QuantConfig.paper(4)
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "learning-rate-1e-3": {"learning_rate": 1e-3},
    "learning-rate-1e-2": {"learning_rate": 1e-2},
    "learning-rate-constant": {"schedule": "constant"},
    "batch-64": {"batch_size": 64},
    "labels-alone": {"teachers": ()},
    "alpha-0.7": {"alpha": 0.7},
    "alpha-0.9": {"alpha": 0.9},
    "temperature-1": {"temperature": 1.0},
    "temperature-4": {"temperature": 4.0},
    "form-paper": {"form": "paper"},
    "weight-1": {"positive_weight": 1.0},
    "weight-positives-over-negatives": {"positive_weight": "positives/negatives"},
    "mean-over-time": {"pooling": "mean"},
    "4-bit": {"quant": FOUR_BITS},
    "4-bit-split": {"quant": dataclasses.replace(FOUR_BITS, ranges="split")},
    "256-1e-3-constant": {"hidden_size": 256, "learning_rate": 1e-3, "schedule": "constant", "epochs": 4},
    "256-3e-3-constant": {"hidden_size": 256, "schedule": "constant", "epochs": 4},
    "256-1e-2-constant": {"hidden_size": 256, "learning_rate": 1e-2, "schedule": "constant", "epochs": 4},
    "256-constant": {"hidden_size": 256, "schedule": "constant"},
    "256": {"hidden_size": 256},
}
"""Settings of network, model and recipe in place of the base's."""
CHAIN = "4-bit-from-float-chain"


def cells(seed: int) -> list[Cell]:
    """The runs of one seed: one per change, and those that start from the base."""
    base = changed({})
    quantized = dataclasses.replace(base, network=LSTMConfig(hidden_size=64, quant=FOUR_BITS), start="base")
    rates = {"": 1e-3, "-3e-3": 3e-3, "-3e-4": 3e-4}
    from_float = {
        f"4-bit-from-float{suffix}": dataclasses.replace(quantized, learning_rate=rate)
        for suffix, rate in rates.items()
    }
    network = LSTMConfig(hidden_size=64, quant=dataclasses.replace(FOUR_BITS, gradient="chain"))
    chain = {"base": base, CHAIN: dataclasses.replace(from_float["4-bit-from-float"], network=network)}
    return [
        *(_cell(seed, name, {name: changed(change)}, change) for name, change in CHANGES.items()),
        _cell(seed, "4-bit-from-float", {"base": base, **from_float}, unkept=("base",)),
        _cell(seed, CHAIN, chain, unkept=("base",)),
    ]


def changed(change: dict[str, Any]) -> ModelConfig:
    """The model of a change, whose settings of the recipe `_cell` sets."""
    network = LSTMConfig(**{"hidden_size": 64} | _of(LSTMConfig, change))
    return ModelConfig(network=network, teachers=change.get("teachers", (str(TEACHER_LOGITS),)))


def _cell(
    seed: int, name: str, models: dict[str, ModelConfig], change: Mapping[str, Any] = {}, **fields: Any
) -> Cell:
    recipe = dataclasses.replace(ClipRecipe(seed=seed), **_of(ClipRecipe, change))
    data, full_name = ManifestData(events=EVENTS), f"{name}-seed{seed}"
    return Cell(
        name, RunConfig(name=full_name, data=data, recipe=recipe, models=models), f"seed{seed}", **fields
    )


def _of(kind: Any, change: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in change.items() if name in fields}


def parts(folder: Path) -> dict[str, str]:
    """The marked part of the page: the best epoch of each change on validation."""
    rows = [
        [name, f"{result.valid['auc']:.2f}", f"{result.valid['eer']:.2f}", str(result.best_epoch)]
        for name, seeds in read_results(folder / "cells").items()
        for result in seeds.values()
        if result.valid
    ]
    table = markdown(["change", "validation AUC", "EER", "epoch"], rows)
    return {"table": table if rows else "No result of this experiment is kept in the repository yet."}
