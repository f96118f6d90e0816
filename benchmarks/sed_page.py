"""The page of `benchmarks.sed_tables`, from the cells that it left: tables, and how near the goals are.

python -m benchmarks.sed_page [--cells DIR] [--out DIR]
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from benchmarks.sed_tables import SE_TEACHER, SEVERAL
from benchmarks.standard import EVENTS
from benchmarks.text import DASH, markdown, spread
from qkd_jax.commands.cli import override, run_command
from qkd_jax.errors import InputError
from qkd_jax.evaluation.table import TIMED_METRICS
from qkd_jax.system.files import whole_file

_ROOT = Path(__file__).parents[1]
FIGURES = {**TIMED_METRICS, "auc": "AUC", "eer": "EER"}
FEW = {8: 0.98, 4: 0.94}
"""Bits, and the share of PSDS1 that is to be left."""
DUAL = {
    "baseline": "DESED's baseline",
    SE_TEACHER: "the teacher, an SE-CRNN of twice the width",
    "third": "an SE-CRNN of a third of the baseline's parameters, with a mean student alone",
    "third-cdtd": "taught directly (CDTD, the control)",
    "third-takd": "taught through its mean student (TAKD, `mean_step`)",
    "third-ema-ste": "taught by the gradient at its mean student (TAKD, `ema_ste`)",
    "third-eefd": "guided by a tagger's embeddings (EEFD)",
    "third-both": "TAKD and EEFD",
}
MULTI = {
    SEVERAL[0]: "a teacher: gated units, DESED's baseline",
    SEVERAL[1]: "a teacher: ResNet blocks",
    SEVERAL[2]: "a teacher: DenseNet blocks",
    "fusion": "the three together, weighed for each event",
    "tiny": "the student, separable blocks, by the labels alone",
    "tiny-one": "the student, taught by the first",
    "tiny-fused": "the student, taught by the three",
    "lstm": "a student that can leave as integers, an LSTM behind convolutions, by the labels alone",
    "lstm-fused": "the LSTM, taught by the three",
}
Cells = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where cells are, and where the page goes."""

    cells: str = str(_ROOT / "docs/results/sed/cells")
    """Folder of the cells."""
    out: str = str(_ROOT / "docs/results/sed")
    """Folder of the page, tables.md."""


def read_cells(folder: Path) -> Cells:
    """The cells in `folder` by name, of all seeds; raises InputError for none, or those of unlike batches."""
    found: Cells = {}
    for path in sorted(folder.glob("*-seed*.json")):
        found.setdefault(path.stem.rpartition("-seed")[0], []).append(json.loads(path.read_text()))
    if not found:
        raise InputError(f"--cells: expected cells in {folder}, found none")
    batches = {tuple(cell["clips"]) for seeds in found.values() for cell in seeds if "clips" in cell}
    if len(batches) > 1:
        raise InputError(f"--cells: expected one size of batches in {folder}, found {sorted(batches)}")
    return found


def page(cells: Cells) -> str:
    """The tables of both comparisons and of few bits, as Markdown; what hasn't trained is left out."""
    title = "# Sound event detection on the standard set: tables"
    parts = [title, "Made by `python -m benchmarks.sed_page`; test scenes, in percent."]
    for title, rows in (("Dual knowledge distillation", DUAL), ("Several teachers", MULTI)):
        known = {name: what for name, what in rows.items() if name in cells}
        body = [[name, what, *_row(cells[name])] for name, what in known.items()]
        parts += [f"## {title}", markdown(["model", "what", "parameters", *FIGURES.values()], body)]
        if missing := [f"`{name}`" for name in rows if name not in cells]:
            parts.append(f"Not trained yet: {', '.join(missing)}.")
    few = [name for name in cells if name.endswith(tuple(f"-{bits}" for bits in (32, *FEW)))]
    body = [[name, f"{cells[name][0]['bytes']:,}", *_row(cells[name]), _loss(cells, name)] for name in few]
    if few:
        about = (
            "Each went on from the best state of the float model, for a third of its epochs more; so did one "
            "that stayed in float, -32, against which the loss is measured."
        )
        head = ["model", "bytes", "parameters", *FIGURES.values(), "PSDS1 lost"]
        parts += ["## 8 and 4 bits", about, markdown(head, body)]
    return "\n\n".join([*parts, *_ratios(cells), *_goals(cells), *_behind(cells)]) + "\n"


def _row(seeds: Sequence[dict[str, Any]]) -> list[str]:
    averages = [cell["metrics"]["average"] for cell in seeds]
    return [f"{seeds[0]['parameters']:,}", *(spread([each[key] for each in averages]) for key in FIGURES)]


def _mean(seeds: Sequence[dict[str, Any]], figure: str) -> float:
    return float(np.mean([cell["metrics"]["average"][figure] for cell in seeds]))


def _loss(cells: Cells, name: str) -> str:
    before = cells.get(f"{name.rpartition('-')[0]}-32")
    if not before or name.endswith("-32"):
        return DASH
    lost = 100 * (1 - _mean(cells[name], "psds1") / _mean(before, "psds1"))
    return f"{round(lost)} %"


def _ratios(cells: Cells) -> list[str]:
    """How many times smaller a student is than one teacher of its comparison, and than all."""
    body = []
    for student, teachers in {"third": (SE_TEACHER,), "tiny": SEVERAL, "lstm": SEVERAL}.items():
        if any(name not in cells for name in teachers):
            continue
        sizes = [cells[name][0]["bytes"] for name in teachers]
        for name in (name for name in cells if name.startswith(student)):
            size = cells[name][0]["bytes"]
            each = ", ".join(f"{teacher / size:.1f}" for teacher in sizes)
            body.append([name, f"{size:,}", ", ".join(teachers), each, f"{sum(sizes) / size:.0f}"])
    head = ["student", "bytes", "against", "times smaller than each", "than all"]
    return ["## How much smaller", markdown(head, body)] if body else []


def _goals(cells: Cells) -> list[str]:
    """What was aimed at, and what came of it."""
    rows = []

    def compare(aim: str, name: str, others: Sequence[str], least: float, figures: Sequence[str]) -> None:
        if name in cells and all(other in cells for other in others):
            ours = [_mean(cells[name], figure) for figure in figures]
            theirs = [float(np.mean([_mean(cells[other], figure) for other in others])) for figure in figures]
            met = all(one >= least * other for one, other in zip(ours, theirs))
            said = [" / ".join(f"{value:.2f}" for value in values) for values in (ours, theirs)]
            rows.append([aim, *said, "met" if met else "missed"])
        else:
            rows.append([aim, DASH, DASH, "not trained yet"])

    both, psds = "third-both", ("psds1", "psds2")
    compare(f"{both} beats the baseline in PSDS1 and PSDS2", both, ("baseline",), 1, psds)
    for name in ("tiny-fused", "lstm-fused"):
        compare(f"{name} is no worse than its teachers' average in PSDS1 and PSDS2", name, SEVERAL, 1, psds)
    for name in (both, "third-cdtd", "tiny-fused", "lstm-fused"):
        for bits, least in FEW.items():
            aim = f"{name} at {bits} bits loses at most {100 * (1 - least):.0f} % of PSDS1"
            compare(aim, f"{name}-{bits}", (f"{name}-32",), least, psds[:1])
    return ["## What was aimed at", markdown(["aim", "it", "against", ""], rows)] if rows else []


def _behind(cells: Cells) -> list[str]:
    """What the averages hide: validation, by which the best epoch was chosen, and each event's PSDS1."""
    valid = {"psds1": "PSDS1", "psds2": "PSDS2", "auc": "AUC"}
    body = []
    for name, seeds in cells.items():
        if "valid" in seeds[0]:
            chosen = [spread([cell["valid"][key] for cell in seeds]) for key in valid]
            events = [spread([cell["metrics"][event]["psds1"] for cell in seeds]) for event in EVENTS]
            body.append([name, *chosen, *events])
    head = ["model", *(f"{label}, validation" for label in valid.values())]
    head += [f"PSDS1 of {event}, test" for event in EVENTS]
    return ["## Behind the averages", markdown(head, body)] if body else []


def main(arguments: list[str]) -> None:
    """Write the page."""
    settings = override(Settings(), arguments, prog="python -m benchmarks.sed_page", description=__doc__)
    path = Path(settings.out) / "tables.md"
    text = page(read_cells(Path(settings.cells)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, "w") as file:
        file.write(text)
    print(f"{path} has the tables")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
