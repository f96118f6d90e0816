"""ESC-50 and ESC-10 (Piczak 2015) by their official five folds: students of heads on pretrained taggers.

DATA is the folder of ESC-50 as published.  Cells are per fold.  Those named `tune-` change one setting each,
or the number of updates, and test nothing: they are compared on fold 4, with fold 5 left out.  All others are
final: they train on all folds but the test fold for a fixed number of updates, and nothing is chosen by it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import DASH, markdown, spread
from experiments import acdnet
from experiments.cells import Cell, Place, Result, Results, read_results, renamed
from experiments.tables import read_rows, write_rows
from qkd_jax.commands.cli import load_preset
from qkd_jax.commands.override import heads_on
from qkd_jax.config import (
    ClipRecipe,
    FeatureConfig,
    LSTMConfig,
    ManifestData,
    ModelConfig,
    QuantConfig,
    RunConfig,
)

FOLDS, TUNING_FOLD = (1, 2, 3, 4, 5), 5
MN04, YAMNET = "mn04_head.toml", "yamnet_head.toml"
UPDATES, FURTHER = 16_000, 4_000
"""Updates of the float student, and of those of few bits that start from it."""
TUNING_UPDATES, LONGER = 4_000, (2_000, 8_000, 16_000)
"""Updates of the student whose settings are compared, and of the same with the settings of the base."""
FRAMES = FeatureConfig(win_length=640, hop_length=320, n_fft=1024)
"""Windows of 40 ms, every 20 ms: half the work of the default, with which `tune-10-ms` compares them."""
_CLIPS = {"esc50": 400, "esc10": 80}
"""Per fold."""
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "sigmoids": {"recipe": {"softmax_weight": 0.0}},
    "unweighted": {"recipe": {"positive_weight": 1.0}},
    "alpha-0.5": {"recipe": {"alpha": 0.5}},
    "no-classes": {"recipe": {"class_weight": 0.0}},
    "no-views": {"augment": {"views": 0, "least_views": 0}},
    "8-views": {"augment": {"views": 8}},
    "masks": {"augment": {"time_masks": 2, "time_mask_frames": 30, "mel_masks": 2}},
    "10-ms": {"features": {"win_length": 400, "hop_length": 160, "n_fft": 512}},
    "wider": {"network": {"hidden_size": 152}},
}
"""Settings in place of the base's, to be tried on the tuning fold."""
TRIED: dict[str, tuple[dict[str, Any], int]] = {
    **{name: (change, TUNING_UPDATES) for name, change in CHANGES.items()},
    **{f"{updates}-updates": ({}, updates) for updates in LONGER},
}
"""Settings and number of updates of each cell `tune-`."""


def cells(fold: int) -> list[Cell]:
    """The runs of one test fold; of the tuning fold also those that choose settings."""

    def cell(name: str, tagger: str | None, bits: Sequence[int], seed: int = 0, table: str = "esc50") -> Cell:
        config = _config(f"{name}-fold{fold}", tagger, fold, seed=seed, bits=bits, table=table, final=True)
        return Cell(name, renamed(config, f"{name}-"), f"fold{fold}")

    made = [
        cell("mn04", MN04, (8, 4, 3, 2)),
        cell("mn04-seed1", MN04, (4,), 1),
        cell("mn04-seed2", MN04, (4,), 2),
        cell("yamnet", YAMNET, (8, 4)),
        cell("scratch", None, (8, 4)),
        cell("esc10", MN04, (8, 4), table="esc10"),
    ]
    if fold == TUNING_FOLD:
        for name, (change, updates) in TRIED.items():
            config = _config(f"tune-{name}", MN04, fold, change=change, updates=updates)
            made.append(Cell(f"tune-{name}", renamed(config, f"tune-{name}-"), f"fold{fold}"))
    return made


def _config(
    name: str,
    tagger: str | None,
    fold: int,
    *,
    seed: int = 0,
    bits: Sequence[int] = (),
    table: str = "esc50",
    final: bool = False,
    change: Mapping[str, Mapping[str, Any]] | None = None,
    updates: int = UPDATES,
) -> RunConfig:
    """Preset small on clips of 5 s, with a fixed number of updates; without a tagger, from labels alone."""
    preset, change = load_preset("small"), change or {}
    assert isinstance(preset.recipe, ClipRecipe)
    augment = dataclasses.replace(preset.augment, **change.get("augment", {}))
    clips = _CLIPS[table] * (4 if final else 3)
    views = augment.views_per_clip(clips) if tagger and augment.views else 0
    in_a_pass = clips * (1 + views) // preset.recipe.batch_size
    recipe = dataclasses.replace(
        preset.recipe,
        seed=seed,
        final=final,
        min_updates=0,
        epochs=updates // in_a_pass,
        **change.get("recipe", {}),
    )
    student = preset.models["distilled"].network
    assert isinstance(student, LSTMConfig)
    network = dataclasses.replace(student, **change.get("network", {}))
    teachers = ("head",) if tagger else ()
    float_student = ModelConfig(network=network, teachers=teachers)
    models = {"distilled": float_student} | {
        f"distilled-{each}": dataclasses.replace(
            float_student,
            network=network.quantized(QuantConfig.integer(each)),
            start="distilled",
            learning_rate=1e-3,
            epochs=FURTHER // in_a_pass,
        )
        for each in bits
    }
    head = {"head": heads_on([tagger])["head"]} if tagger else {}
    return RunConfig(
        name=name,
        features=dataclasses.replace(FRAMES, **change.get("features", {})),
        data=ManifestData(manifest=f"{table}.csv", clip_seconds=5.0, folds=(fold,)),
        recipe=recipe,
        augment=augment,
        models=head | models,
    )


PUBLISHED = (
    ("ACDNet (4.7 M parameters)", "18.9 MB", "87.1", DASH, "44.1 to 20 kHz; no pretraining"),
    ("Micro-ACDNet (131 k parameters), float", "0.5 MB", "83.65", "96.25", "20 kHz; no pretraining"),
    ("YAMNet-256, int8 (ST's model zoo)", "135.9 kB", DASH, "94.9", "16 kHz; AudioSet; its own split"),
)
"""Model, bytes, accuracy on ESC-50 and on ESC-10, and what else to know; figures of their authors."""
ROWS = {
    "mn04-head": "head on mn04",
    "mn04-distilled": "its student, float",
    "mn04-distilled-8": "8 bits",
    "mn04-distilled-4": "4 bits",
    "mn04-distilled-3": "3 bits",
    "mn04-distilled-2": "2 bits",
    "yamnet-head": "head on YAMNet",
    "yamnet-distilled": "its student, float",
    "yamnet-distilled-8": "8 bits",
    "yamnet-distilled-4": "4 bits",
    "scratch-distilled": "the same student from labels alone, float",
    "scratch-distilled-8": "8 bits",
    "scratch-distilled-4": "4 bits",
}


def parts(folder: Path) -> dict[str, str]:
    """The marked parts of the page, from the results in `folder`/cells."""
    results = read_results(folder / "cells")
    if not results:
        return dict.fromkeys(("accuracy", "tuning", "acdnet"), "Not measured yet.")
    peer = acdnet.table(folder / acdnet.FILE.name)
    return {"accuracy": _accuracy(results), "tuning": _tuning(results), "acdnet": peer}


def _accuracy(results: Results) -> str:
    rows = []
    for name, text in ROWS.items():
        kind, dash, model = name.partition("-")
        every = [f"{kind}{seed}{dash}{model}" for seed in ("", "-seed1", "-seed2")]
        tens = [f"esc10-{model}"] if kind == "mn04" else []
        if found := [results[each] for each in every if each in results]:
            size = next(iter(found[0].values())).bytes
            rows.append(
                [text, f"{size:,}", _over_folds(found), _over_folds([results.get(each, {}) for each in tens])]
            )
    head = ["model", "bytes", "ESC-50", "ESC-10", ""]
    return markdown(head, [[*row, ""] for row in rows] + [list(row) for row in PUBLISHED])


def _over_folds(seeds: Sequence[Mapping[str, Result]]) -> str:
    """The mean over seeds of the accuracy over folds, ± half the range; the folds if some lack."""
    means = [
        np.mean([each.metrics["average"]["accuracy"] for each in folds.values()]) for folds in seeds if folds
    ]
    if not means:
        return DASH
    folds = min(map(len, seeds))
    some = f" ({folds} of {len(FOLDS)} folds)" if folds < len(FOLDS) else ""
    return spread([float(mean) for mean in means]) + some


def _tuning(results: Results) -> str:
    rows = []
    for name in TRIED:
        for result in results.get(f"tune-{name}-distilled", {}).values():
            valid = result.valid or {}
            rows.append(
                [
                    name,
                    f"{valid['accuracy']:.2f}",
                    f"{valid['map']:.2f}",
                    str(result.best_epoch),
                    f"{result.bytes:,}",
                ]
            )
    return markdown(["change", "accuracy on fold 4", "mAP", "epoch", "bytes"], rows)


def prepared(place: Place) -> Place:
    """`place` with a folder as its data that links to the recordings, with tables of ESC-50 and of ESC-10.

    Four recordings are in two of the published folds, so a group is a recording within a fold.
    """
    assert place.data is not None
    folder = place.runs / "esc50"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "audio").is_symlink():
        (folder / "audio").symlink_to((place.data / "audio").absolute())
    rows = [
        {
            "filename": f"audio/{row['filename']}",
            "labels": row["category"],
            "fold": row["fold"],
            "group": f"{row['src_file']} {row['fold']}",
            "esc10": row["esc10"],
        }
        for row in read_rows(place.data / "meta" / "esc50.csv")
    ]
    columns = ("filename", "labels", "fold", "group")
    write_rows(folder / "esc50.csv", rows, columns)
    write_rows(folder / "esc10.csv", [row for row in rows if row["esc10"] == "True"], columns)
    return dataclasses.replace(place, data=folder)
