"""Own recordings: preset small with a pretrained tagger, by the README's command, on 3,000 scenes."""

import dataclasses
from pathlib import Path

from benchmarks.common import EVENTS, markdown, spread
from experiments.cells import Cell, Results, read_results
from qkd_jax.commands.cli import load_preset
from qkd_jax.commands.override import heads_on, with_teachers
from qkd_jax.config import RunConfig, with_data

SEEDS = (0, 1, 2)
TAGGER = "yamnet_head.toml"
CONTROL = "control"
"""The float student trained on for as long as those of 8 and 4 bits, to tell quantizing from training on."""
NAMES = {"zero-shot": "YAMNet, zero-shot", "head": "head on YAMNet"}


def cells(seed: int) -> list[Cell]:
    """The run of one seed, with the control."""
    run = config(f"own-seed{seed}", seed)
    control = dataclasses.replace(run.models["distilled-8"], network=run.models["distilled"].network)
    return [Cell("own", dataclasses.replace(run, models=run.models | {CONTROL: control}), f"seed{seed}")]


def config(name: str, seed: int) -> RunConfig:
    """Preset small, taught by a head on YAMNet."""
    preset = load_preset("small")
    recipe = dataclasses.replace(preset.recipe, seed=seed)
    preset = dataclasses.replace(preset, name=name, recipe=recipe, models=heads_on([TAGGER]) | preset.models)
    return with_data(with_teachers(preset, ["head"]), events=EVENTS)


def among(seeds: int) -> str:
    """What figures are of."""
    return f"mean ± half the range of {seeds} seeds" if seeds > 1 else "one seed"


def table(results: Results) -> str:
    """A row per model: bytes, AUC and EER, EER of each event, minutes of the whole run."""
    rows = []
    for name in config("own", 0).models:
        if name not in results:
            continue
        seeds = list(results[name].values())
        columns = ("average", "auc"), ("average", "eer"), *((event, "eer") for event in EVENTS)
        figures = [spread([each.columns[column][key] for each in seeds]) for column, key in columns]
        rows.append([NAMES.get(name, name), f"{seeds[0].bytes:,}", *figures])
    return markdown(["model", "bytes", "AUC", "EER", *(f"EER {event}" for event in EVENTS)], rows)


def parts(folder: Path) -> dict[str, str]:
    """The marked parts of the page, from the results in `folder`/cells; `own` is also in the README."""
    results = read_results(folder / "cells")
    runs = list(results.get("distilled-4", {}).values())
    note = (
        f"AUC and EER on 3,000 test scenes, in percent; {among(len(runs))}. Time of a run: {times(results)}."
    )
    return {"own": f"{note}\n\n{table(results)}", "control": quantizing(results)}


def times(results: Results) -> str:
    """Minutes of the runs that had the machine to themselves; the command doesn't train the control."""
    texts = []
    for seed, run in results.get("distilled-4", {}).items():
        if run.seconds:
            more = ", with the control" if seed in results.get(CONTROL, {}) else ""
            texts.append(f"{run.seconds / 60:.0f} minutes ({run.machine}{more})")
    return "; ".join(texts) or "not measured"


def quantizing(results: Results) -> str:
    """AUC and EER on validation of the students that start from the float one, and of the control."""
    seeds = results.get(CONTROL, {}).keys()
    if not seeds:
        return "Not measured yet."
    rows = []
    for name, bits in ((CONTROL, "float"), ("distilled-8", "8 bits"), ("distilled-4", "4 bits")):
        of_seeds = [results[name][seed].valid or {} for seed in sorted(seeds)]
        rows.append([bits, *(spread([valid[key] for valid in of_seeds]) for key in ("auc", "eer"))])
    return f"On validation; {among(len(seeds))}.\n\n{markdown(['trained on', 'AUC', 'EER'], rows)}"
