"""What more scenes, views and training bring: the README's command for own recordings, with less of each.

DATA is the standard set.  Fewer scenes are a part, drawn at random, of its 3,000 for training; those for
validation and test are always all.
"""

import dataclasses
import random
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import RESULTS, markdown
from experiments import own
from experiments.cells import Cell, Place, Result, Results, read_results, renamed
from experiments.tables import COLUMNS, read_rows, write_rows
from qkd_jax.config import RunConfig, with_data

ALL, STUDENT = 3000, "distilled-4"


class Point(NamedTuple):
    """What is changed of the command; `share` is of the epochs."""

    scenes: int = ALL
    views: bool = True
    share: float = 1.0


POINTS = {
    "scenes-375": Point(375),
    "scenes-750": Point(750),
    "scenes-1500": Point(1500),
    "no-views": Point(views=False),
    "quarter": Point(share=0.25),
}


def cells(seed: int) -> list[Cell]:
    """The runs of one seed."""
    return [Cell(name, _config(name, point, seed), f"seed{seed}") for name, point in POINTS.items()]


def _config(name: str, point: Point, seed: int) -> RunConfig:
    config = own.config(f"curve-{name}-seed{seed}", seed)
    models = {each: model for each, model in config.models.items() if each != "distilled-8"}
    for each, model in models.items():
        if model.teachers and model.epochs:
            models[each] = dataclasses.replace(model, epochs=max(round(model.epochs * point.share), 1))
    augment = config.augment if point.views else dataclasses.replace(config.augment, views=0)
    config = dataclasses.replace(config, models=models, augment=augment)
    return renamed(with_data(config, manifest=f"{point.scenes}.csv"), f"{name}-")


def prepared(place: Place) -> Place:
    """`place` with a folder of tables beside links to the scenes as its data."""
    folder, data = place.runs / "scenes", place.data
    assert data is not None
    folder.mkdir(parents=True, exist_ok=True)
    for entry in data.iterdir():
        if not (folder / entry.name).is_symlink():
            (folder / entry.name).symlink_to(entry.absolute())
    rows = read_rows(data / "metadata.csv")
    for scenes in {point.scenes for point in POINTS.values()}:
        write_rows(folder / f"{scenes}.csv", some_of(rows, scenes), COLUMNS[:3])
    return dataclasses.replace(place, data=folder)


def some_of(rows: list[dict[str, str]], scenes: int) -> list[dict[str, str]]:
    """`rows` with as many of those for training; fewer are among those of any higher number."""
    train = [row["filename"] for row in rows if row["split"] == "train"]
    random.Random(0).shuffle(train)
    kept = set(train[:scenes])
    return [row for row in rows if row["split"] != "train" or row["filename"] in kept]


def parts(folder: Path, whole: Path = RESULTS / "own") -> dict[str, str]:
    """The marked part of the page, from the results in `folder`/cells and, of the command itself, `whole`."""
    results = read_results(folder / "cells")
    done = {name: point for name, point in POINTS.items() if f"{name}-{STUDENT}" in results}
    if not done:
        return {"curve": "Not measured yet."}
    rows = [_row(point, results, f"{name}-") for name, point in done.items()]
    rows.append(_row(Point(), read_results(whole / "cells"), ""))
    titles = ["scenes", "views", "updates of the float student", "head", "float", "4 bits"]
    note = (
        "EER in percent on 3,000 test scenes, average over three events; seed 0. The last row is the command."
    )
    return {"curve": f"{note}\n\n{markdown(titles, rows)}"}


def _row(point: Point, results: Results, prefix: str) -> list[str]:
    def result(name: str) -> Result:
        return results[prefix + name]["seed0"]

    config = _config("row", point, 0)
    augment, epochs = config.augment, config.models["row-distilled"].epochs or 0
    views = augment.views_per_clip(point.scenes) * point.scenes if point.views else 0
    updates = epochs * ((point.scenes + views) // config.recipe.batch_size)
    eers = [result(name).metrics["average"]["eer"] for name in ("head", "distilled", STUDENT)]
    return [f"{point.scenes:,}", f"{views:,}", f"{updates:,}", *(f"{eer:.1f}" for eer in eers)]
