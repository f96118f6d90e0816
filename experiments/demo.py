"""The demo over several seeds: the table in the README."""

import dataclasses
from pathlib import Path

from benchmarks.common import markdown, spread
from experiments.cells import Cell, read_results
from qkd_jax.commands.cli import load_preset

COLUMNS = ("model", "AUC", "EER", "bytes", "parameters", "multiply-adds")
SEEDS = (0, 1, 2, 3, 4)


def cells(seed: int) -> list[Cell]:
    """The run of one seed: preset `demo`, which synthesises its own recordings."""
    config = load_preset("demo")
    recipe = dataclasses.replace(config.recipe, seed=seed)
    return [Cell("demo", dataclasses.replace(config, name=f"demo-seed{seed}", recipe=recipe), f"seed{seed}")]


def parts(folder: Path) -> dict[str, str]:
    """The marked part of the page and of the README: a row per model, in the order of training."""
    results, rows, count = read_results(folder / "cells"), [], 0
    for name in (name for name in load_preset("demo").models if name in results):
        seeds = list(results[name].values())
        count = max(count, len(seeds))
        figures = [spread([each.metrics["average"][key] for each in seeds]) for key in ("auc", "eer")]
        work = f"{(seeds[0].multiply_adds or 0) / 1e6:.1f} M"
        rows.append([name, *figures, f"{seeds[0].bytes:,}", f"{seeds[0].parameters:,}", work])
    table = markdown(COLUMNS, rows)
    scores = "AUC and EER on 480 test clips, in percent, averages over three events"
    note = f"{scores}; mean ± half the range of {count} seeds."
    return {"demo": f"{note}\n\n{table}"}
