"""Few recordings: draws of 20, 60 and 150 from the standard clips, taught by a head on YAMNet.

DATA is the folder of the standard clips.  All clips are cut to the same law of lengths (0.8 to 2 s), since
raw lengths give classes away.  A draw has a quarter each of dogs, crying babies, gunshots and other sounds;
a fifth of each or more, by group in random order, is its validation split.  Test clips are those of the
standard test split.  A draw of 20 is trained again with 1,000 of the other training clips, without labels.
"""

import dataclasses
import random
from collections import defaultdict
from pathlib import Path

import soundfile

from benchmarks.common import DASH, EVENTS, markdown, spread
from experiments import own
from experiments.cells import Cell, Place, Results, read_results, renamed
from experiments.tables import read_rows, write_rows
from qkd_jax.config import with_data
from qkd_jax.system.files import whole_file

SIZES, DRAWS, FURTHER = (20, 60, 150), (0, 1, 2, 3, 4), 1000
KINDS = {
    "20": "20 recordings",
    f"20-and-{FURTHER}": f"and {FURTHER:,} without labels",
    "60": "60 recordings",
    "150": "150 recordings",
}


def cells(draw: int) -> list[Cell]:
    """The runs of one draw of each size."""
    return [_cell(kind, draw) for kind in KINDS]


def _cell(kind: str, draw: int) -> Cell:
    size, *further = kind.split("-and-")
    config = own.config(f"few-{kind}-draw{draw}", draw)
    unlabelled = f"further-{size}-draw{draw}" if further else None
    data = {"clip_seconds": 2.0, "manifest": f"{size}-draw{draw}.csv", "unlabelled": unlabelled}
    return Cell(f"few-{kind}", renamed(with_data(config, **data), f"{kind}-"), f"seed{draw}")


def prepared(place: Place) -> Place:
    """`place` with a folder of crops as its data, with a table of each draw and a folder of further clips."""
    folder = place.runs / "crops"
    assert place.data is not None
    rows = read_rows(place.data / "metadata.csv")
    for row in rows:
        path = folder / _file(row)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            samples, rate = soundfile.read(place.data / row["filename"], dtype="float32")
            start = round(float(row["eq_start_s"]) * rate)
            some = samples[start : start + round(float(row["eq_dur_s"]) * rate)]
            with whole_file(path) as file:
                soundfile.write(file, some, rate, format="FLAC")
    for size in SIZES:
        for draw in DRAWS:
            drawn = draw_of(rows, size, draw)
            write_rows(folder / f"{size}-draw{draw}.csv", map(_entry, drawn))
            links = folder / f"further-{size}-draw{draw}"
            links.mkdir(exist_ok=True)
            for row in further(rows, drawn, draw):
                if not (links / _file(row)).is_symlink():
                    (links / _file(row)).symlink_to(folder / _file(row))
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


def further(rows: list[dict[str, str]], drawn: list[dict[str, str]], draw: int) -> list[dict[str, str]]:
    """Training clips of `rows` that aren't `drawn`, nor of a group of its validation split."""
    names = {row["filename"] for row in drawn}
    valid = {row["source_id"] for row in drawn if row["split"] == "valid"}
    others = [
        row
        for row in rows
        if row["split"] == "train" and row["filename"] not in names and row["source_id"] not in valid
    ]
    return random.Random(f"further {draw}").sample(others, min(FURTHER, len(others)))


def _file(row: dict[str, str]) -> str:
    return f"{Path(row['filename']).stem}.flac"


def _entry(row: dict[str, str]) -> dict[str, str]:
    """The row of a crop; published splits hold, so a source is a group in each."""
    return row | {"filename": _file(row), "group": f"{row['split']} {row['source_id']}"}


def table(results: Results) -> str:
    """EER by model and number of recordings."""
    rows = []
    for name in own.config("own", 0).models:
        of_kinds = [list(results.get(f"{kind}-{name}", {}).values()) for kind in KINDS]
        if any(of_kinds):
            eers = [[each.metrics["average"]["eer"] for each in some] for some in of_kinds]
            rows.append([own.NAMES.get(name, name), *(spread(some) if some else DASH for some in eers)])
    return markdown(["model", *KINDS.values()], rows)


def parts(folder: Path) -> dict[str, str]:
    """The marked part of the page, from the results in `folder`/cells."""
    results = read_results(folder / "cells")
    runs = {kind: list(results.get(f"{kind}-distilled-4", {}).values()) for kind in KINDS}
    if not any(runs.values()):
        return {"few": "Not measured yet."}
    draws = ", ".join(str(len(some)) for some in runs.values())
    note = "EER on 550 test clips, in percent, average over three events; mean ± half the range over draws. "
    note += f"Draws per column: {draws}."
    timed = [run for run in runs[str(SIZES[-1])] if run.seconds]
    if timed:
        minutes = spread([run.seconds / 60 for run in timed if run.seconds])
        machines = ", ".join(sorted({run.machine or DASH for run in timed}))
        note += f" A run on {SIZES[-1]} recordings took {minutes} minutes ({machines})."
    return {"few": f"{note}\n\n{table(results)}"}
