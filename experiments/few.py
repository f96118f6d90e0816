"""Few recordings: draws of 20, 60 and 150 from the standard clips, taught by a head on YAMNet.

DATA is the folder of the standard clips.  All clips are cut to the same law of lengths (0.8 to 2 s), since
raw lengths give classes away.  A draw has a quarter each of dogs, crying babies, gunshots and other sounds;
a fifth of its recordings, or a little more, by group, is its validation split.  Test clips are those of the
standard test split.
"""

import csv
import dataclasses
import random
from collections import defaultdict
from pathlib import Path

import soundfile

from benchmarks.common import DASH, EVENTS, markdown, spread
from experiments import own
from experiments.cells import Cell, Place, Results, read_results
from qkd_jax.config import ModelConfig, RunConfig, with_data

SIZES, DRAWS = (20, 60, 150), (0, 1, 2, 3, 4)
_NAMES = {"zero-shot": "YAMNet, zero-shot", "head": "head on YAMNet"}


def cells(draw: int) -> list[Cell]:
    """The runs of one draw of each size."""
    return [_cell(size, draw) for size in SIZES]


def _cell(size: int, draw: int) -> Cell:
    config = own.config(f"few-{size}-draw{draw}", draw)
    config = with_data(config, clip_seconds=2.0, manifest=f"{size}-draw{draw}.csv")
    return Cell(f"few-{size}", _renamed(config, f"{size}-"), f"seed{draw}")


def _renamed(config: RunConfig, prefix: str) -> RunConfig:
    """`config` with `prefix` before the names of its models, so that results of several sizes differ."""

    def renamed(name: str) -> str:
        return prefix + name if name in config.models else name

    models: dict[str, ModelConfig] = {
        renamed(name): dataclasses.replace(
            model, teachers=tuple(map(renamed, model.teachers)), start=model.start and renamed(model.start)
        )
        for name, model in config.models.items()
    }
    return dataclasses.replace(config, models=models)


def prepared(place: Place) -> Place:
    """`place` with a folder of crops and a table for each draw as its data; it is written if need be."""
    folder = place.runs / "crops"
    assert place.data is not None
    with open(place.data / "metadata.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        path = folder / f"{Path(row['filename']).stem}.flac"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            samples, rate = soundfile.read(place.data / row["filename"], dtype="float32")
            start = round(float(row["eq_start_s"]) * rate)
            soundfile.write(path, samples[start : start + round(float(row["eq_dur_s"]) * rate)], rate)
    for size in SIZES:
        for draw in DRAWS:
            _write_table(folder / f"{size}-draw{draw}.csv", draw_of(rows, size, draw))
    return dataclasses.replace(place, data=folder)


def draw_of(rows: list[dict[str, str]], size: int, draw: int) -> list[dict[str, str]]:
    """The test clips of `rows`, and a draw of `size` training clips; a part of it gets the split `valid`."""
    source, chosen = random.Random(f"{size} {draw}"), [row for row in rows if row["split"] == "test"]
    for place, kind in enumerate(("", *EVENTS)):
        of_kind = [row for row in rows if row["split"] == "train" and row["labels"] == kind]
        drawn = source.sample(of_kind, (size + place) // 4)
        groups = defaultdict(list)
        for row in drawn:
            groups[row["source_id"]].append(row)
        valid = 0
        for of_group in groups.values():
            split = "valid" if valid < len(drawn) / 5 and len(groups) > 1 else "train"
            valid += len(of_group) if split == "valid" else 0
            chosen += [row | {"split": split} for row in of_group]
    return chosen


def _write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "labels", "split", "group"])
        for row in rows:
            name = f"{Path(row['filename']).stem}.flac"
            writer.writerow([name, row["labels"], row["split"], f"{row['split']} {row['source_id']}"])


def table(results: Results) -> str:
    """EER by model and number of recordings."""
    rows = []
    for name in own.config("own", 0).models:
        cells_of = [list(results.get(f"{size}-{name}", {}).values()) for size in SIZES]
        if any(cells_of):
            rows.append(
                [
                    _NAMES.get(name, name),
                    *(
                        spread([each.metrics["average"]["eer"] for each in some]) if some else DASH
                        for some in cells_of
                    ),
                ]
            )
    return markdown(["model", *(f"{size} recordings" for size in SIZES)], rows)


def parts(folder: Path) -> dict[str, str]:
    """The marked part of the page, from the results in `folder`/cells."""
    results = read_results(folder / "cells")
    runs = {size: list(results.get(f"{size}-distilled-4", {}).values()) for size in SIZES}
    if not any(runs.values()):
        return {"few": "Not measured yet."}
    draws = ", ".join(f"{len(runs[size])} of {size}" for size in SIZES)
    note = "EER on 550 test clips, in percent, average over three events; mean ± half the range of the draws "
    note += f"({draws})."
    minutes = [run.seconds / 60 for run in runs[SIZES[-1]] if run.seconds]
    if minutes:
        note += (
            f" A run on {SIZES[-1]} recordings took {spread(minutes)} minutes ({runs[SIZES[-1]][0].machine})."
        )
    return {"few": f"{note}\n\n{table(results)}"}
