"""The paper's student on scenes, with a better teacher and more to learn from: a head on YAMNet, and views.

DATA is the standard set.  The LSTMs have 256 units and see single frames, as in the paper; recordings, head,
views and what else training changes are those of experiment `own`.
"""

import dataclasses
from pathlib import Path

from benchmarks.common import markdown
from experiments import own
from experiments.bootstrap import (
    Finding,
    averages,
    change,
    eer_draws,
    findings_table,
    read_scenes,
    read_test_logits,
)
from experiments.cells import Cell, read_results
from qkd_jax.config import LSTMConfig, ModelConfig, QuantConfig

SEEDS = (0, 1, 2)
EPOCHS, WITH_VIEWS = 12, 4
"""Passes of the plain student, and of those that learn from views: as many updates."""
ROWS = {
    "head": "head on YAMNet",
    "plain-256": "LSTM",
    "distilled-256": "LSTM, distilled",
    "distilled-256-4": "4 bits",
}
FINDINGS = (
    Finding("distilled against plain", "−26.0 %", change("distilled-256", "plain-256"), "<"),
    Finding("4 bits against float", "+12.3 %", change("distilled-256-4", "distilled-256"), "<", 20),
    Finding("4 bits against float, plain", "−16.9 %", change("distilled-256-4", "plain-256"), "<"),
)


def cells(seed: int) -> list[Cell]:
    """The run of one seed.  The 4-bit student starts from the float one, as in preset tuned."""
    config = own.config(f"scenes-seed{seed}", seed)
    learner = ModelConfig(network=LSTMConfig(), teachers=("head",), epochs=WITH_VIEWS)
    four = dataclasses.replace(
        learner, network=LSTMConfig(quant=QuantConfig.paper(4)), start="distilled-256", learning_rate=1e-3
    )
    models = {
        "head": config.models["head"],
        "plain-256": ModelConfig(network=LSTMConfig(), epochs=EPOCHS),
        "distilled-256": learner,
        "distilled-256-4": four,
    }
    return [Cell("scenes", dataclasses.replace(config, models=models), f"seed{seed}")]


def parts(folder: Path) -> dict[str, str]:
    """The marked part of the page, from the results in `folder`/cells."""
    results = read_results(folder / "cells")
    if not results:
        return {"scenes": "Not measured yet."}
    scenes = read_scenes()
    draws = eer_draws(read_test_logits(folder / "cells", results, scenes), scenes)
    rows = []
    for name, text in ROWS.items():
        seeds = list(results.get(name, {}).values())
        if seeds:
            rows.append([text, str(len(seeds)), f"{seeds[0].bytes:,}", *averages(seeds, "auc", "eer")])
    table = markdown(["model", "seeds", "bytes", "AUC", "EER"], rows)
    return {"scenes": f"{table}\n\n{findings_table(FINDINGS, results, draws)}"}
