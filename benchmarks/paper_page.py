"""The page of the paper's four tables, from what `benchmarks.paper_tables` has kept: nothing is trained.

python -m benchmarks.paper_page --data DIR --cells DIR [--out docs/results/paper]

Writes tables.md, det.png and eer-bytes.png: our figures beside those of Shi et al. 2019, what becomes of
its findings, DET curves, and EER against bytes.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from benchmarks.curves import plot_sizes
from benchmarks.findings import Finding, change, findings_table
from benchmarks.scenes import DRAWS, Cells, Scenes, eer_draws, read_scenes, read_test_logits, validation
from benchmarks.standard import EVENTS, read_cells
from benchmarks.text import DASH, markdown, spread
from qkd_jax.commands.cli import override, run_command
from qkd_jax.errors import InputError
from qkd_jax.evaluation.plots import model_styles
from qkd_jax.system.files import whole_file

COLUMNS = ("average", *EVENTS)
SIZES = (256, 128, 64)

# The paper's figures, AUC / EER in percent in the order of COLUMNS.
FLOAT = ("95.41 / 11.16", "93.65 / 14.07", "95.81 / 10.21", "96.78 / 9.19")
TABLE_1 = {
    "teacher": ("DenseNet-63", ("97.14 / 8.03", "95.68 / 11.11", "97.80 / 6.56", "97.93 / 6.41")),
    "plain-3x256": ("LSTM, 3 layers", ("93.87 / 13.52", "92.51 / 15.19", "93.66 / 13.58", "94.90 / 11.79")),
    "plain-256": ("LSTM, 1 layer", ("92.10 / 15.08", "91.35 / 16.60", "92.09 / 15.58", "92.86 / 13.07")),
    "distilled-256": ("LSTM, 1 layer, distilled", FLOAT),
}
TABLE_1_MORE = {
    "distilled-256-yamnet": "the same from YAMNet",
    "distilled-256-both": "the same from both, averaged",
    "yamnet": "YAMNet, zero-shot",
}
# From the README of the recordings; there is no cell of it.
MN04 = ("90.4 / 16.8", "91.9 / 15.4", "93.1 / 14.4", "86.3 / 20.7")
TABLE_2 = {
    "teacher": ("2.28", "8.70", "1.38"),
    "plain-3x256": ("1.32", "5.27", "1.31"),
    "plain-256": ("0.33", "1.26", "0.32"),
    "distilled-256": ("0.33", "1.26", "0.32"),
}
TABLE_3 = {
    "distilled-256": ("float", FLOAT, "1.26"),
    "distilled-256-16": ("16 bits", ("almost no loss", DASH, DASH, DASH), DASH),
    "distilled-256-8": (
        "8 bits",
        ("94.67 / 11.68", "92.99 / 14.61", "95.00 / 10.19", "96.03 / 10.23"),
        "0.32",
    ),
    "distilled-256-4": (
        "4 bits",
        ("94.28 / 12.53", "92.84 / 14.72", "94.35 / 12.56", "95.65 / 10.31"),
        "0.17",
    ),
}
TABLE_4 = {"": "float", "-8": "8 bits", "-pm8": "8 bits, PM", "-4": "4 bits", "-pm4": "4 bits, PM"}
TABLE_4_AUC = {
    256: ("95.41", "94.67", "94.55", "94.28", "92.64"),
    128: ("94.92", "94.61", "94.47", "93.98", "91.40"),
    64: ("94.30", "94.04", "93.41", "93.10", "89.52"),
}
# Lost in our copy of the paper, but for what its text and its table 3 say.
TABLE_4_EER = {256: ("11.16", "11.68", "float + 5.7 %", "12.53", "float + 27.0 %")}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to make the page from, and where."""

    data: str = ""
    """Folder of the recordings: only its metadata.csv is read."""
    cells: str = "docs/results/paper/cells"
    """Folder of the cells."""
    out: str = "docs/results/paper"
    """Folder of the page and its figures."""


def _growth(bits: int) -> Callable[[Mapping[str, Any]], Any]:
    """The points by which the gap between post-mortem and trained is wider at 64 units than at 256."""

    def gap(eer: Mapping[str, Any], units: int) -> Any:
        student = f"distilled-{units}"
        return 100 * (eer[f"{student}-pm{bits}"] - eer[f"{student}-{bits}"]) / eer[student]

    return lambda eer: gap(eer, 64) - gap(eer, 256)


FINDINGS = (
    Finding("distilled against plain", "−26.0 %", change("distilled-256", "plain-256"), "<"),
    Finding("distilled, 1 layer, against plain, 3", "−17.5 %", change("distilled-256", "plain-3x256"), "<"),
    Finding("8 bits against float", "+4.7 %", change("distilled-256-8", "distilled-256"), "<", 10),
    Finding("4 bits against float", "+12.3 %", change("distilled-256-4", "distilled-256"), "<", 20),
    Finding("8 bits PM against float", "+5.7 %", change("distilled-256-pm8", "distilled-256"), "<", 10),
    Finding("4 bits PM against float", "+27.0 %", change("distilled-256-pm4", "distilled-256"), ">", 20),
    Finding("8 bits PM against 8 bits", "+1.0 %", change("distilled-256-pm8", "distilled-256-8"), ">"),
    Finding("4 bits PM against 4 bits", "+13.1 %", change("distilled-256-pm4", "distilled-256-4"), ">"),
    Finding("4 bits against float, plain", "−16.9 %", change("distilled-256-4", "plain-256"), "<"),
    Finding("8 bits: gap to PM, 64 units − 256", "+7.4 points", _growth(8), ">", unit="points"),
    Finding("4 bits: gap to PM, 64 units − 256", "grows", _growth(4), ">", unit="points"),
    Finding("4 bits against DenseNet-63", "+56.0 %", change("distilled-256-4", "teacher"), "<", 56),
)


def page(cells: Cells, draws: Mapping[str, np.ndarray], scenes: Scenes, digest: str) -> str:
    """The page in Markdown; `digest` is that of the metadata.csv."""
    recordings = {item for text in scenes.sources if text for item in text.split(";")}
    parts = [
        "# The tables of Shi et al. 2019, here and there",
        f"""Written by `python -m benchmarks.paper_page`: edits would be lost. Here are the
{len(scenes.names):,} test scenes of a metadata.csv of SHA-256 {digest}…; the paper has clips of the
same three events from AudioSet, so relative changes compare, levels don't. AUC / EER are in percent, of a
trained model's best epoch on validation; of several seeds, the mean ± half their range. PM, post-mortem:
the float student, quantized only after training. {DASH}: not there.""",
        "## What ran",
        _what_ran(cells),
        "## Table 1: full precision",
        _table_1(cells),
        "mn04's figures are those of the README of the recordings.",
        "## Table 2: size and work",
        _table_2(cells),
        "MB are 2^20 bytes, as the paper's seem to be; GFLOPs are its name for 10^9 multiply-adds.",
        "## Table 3: quantized in training",
        _table_3(cells),
        "## Table 4: quantized in training and post-mortem",
        _table_4(cells, "auc", TABLE_4_AUC),
        _table_4(cells, "eer", TABLE_4_EER),
        "The paper's EERs are lost in the copy that we have, but for what its text and its table 3 say.",
        "## What becomes of its findings",
        f"""Each figure is a relative change in average EER, of students of 256 units, distilled where nothing
else is said; the gap is that between two such changes against float, of post-mortem and of trained
quantization. In brackets is the 95 % interval of {DRAWS:,} draws that resample the {len(recordings)}
recordings of events in the test scenes, the same draws for all models; what other seeds of the training
would change is not in it. A claim holds if the whole interval is on its side, and doesn't if the whole
interval is on the other. Where the paper has a figure but no bound, the bound is ours.""",
        findings_table(FINDINGS, cells, draws),
        "## DET curves",
        "![DET curves](det.png)",
        "Of each model's first seed.",
        "## EER against bytes",
        "![EER against bytes](eer-bytes.png)",
        "The average EER with its interval, made as above. Points of equal bytes stand a little apart.",
    ]
    return "\n\n".join(parts) + "\n"


def _beside(names: Iterable[str]) -> list[str]:
    return [part for name in names for part in (name, "paper")]


def _pairs(ours: Iterable[str], theirs: Iterable[str]) -> list[str]:
    return [part for pair in zip(ours, theirs) for part in pair]


def _metric(cells: Cells, name: str, column: str, key: str) -> str:
    seeds = cells.get(name, {}).values()
    return spread([cell.metrics[column][key] for cell in seeds]) if seeds else DASH


def _figures(cells: Cells, name: str) -> list[str]:
    """AUC / EER of each column."""
    if name not in cells:
        return [DASH] * len(COLUMNS)
    return [" / ".join(_metric(cells, name, column, key) for key in ("auc", "eer")) for column in COLUMNS]


def _costs(cells: Cells, name: str) -> list[str]:
    """Millions of parameters, MB, billions of multiply-adds: the same for all seeds."""
    if name not in cells:
        return [DASH] * 3
    cell = next(iter(cells[name].values()))
    scaled = (cell.parameters, 1e6), (cell.bytes, 2**20), (cell.multiply_adds, 1e9)
    return [DASH if value is None else f"{value / unit:.2f}" for value, unit in scaled]


def _what_ran(cells: Cells) -> str:
    def known(values: Iterable[Any]) -> str:
        return ", ".join(dict.fromkeys(str(value or DASH) for value in values))

    rows = []
    for name, seeds in cells.items():
        each = list(seeds.values())
        facts = [
            known(getattr(cell, field) for cell in each)
            for field in ("scenes", "epochs", "best_epoch", "teacher")
        ]
        rows.append([name, ", ".join(map(str, seeds)), *facts, validation(seeds)])
    return markdown(["cell", "seeds", "scenes", "epochs", "best", "taught by", "validation"], rows)


def _table_1(cells: Cells) -> str:
    dashes = [DASH] * len(COLUMNS)
    rows = [[label, *_pairs(_figures(cells, name), paper)] for name, (label, paper) in TABLE_1.items()]
    rows += [
        [label, *_pairs(_figures(cells, name), dashes)]
        for name, label in TABLE_1_MORE.items()
        if name in cells
    ]
    rows.append(["EfficientAT mn04, zero-shot", *_pairs(MN04, dashes)])
    return markdown(["model", *_beside(COLUMNS)], rows)


def _table_2(cells: Cells) -> str:
    rows = [[TABLE_1[name][0], *_pairs(_costs(cells, name), paper)] for name, paper in TABLE_2.items()]
    return markdown(["model", *_beside(["parameters, M", "MB", "GFLOPs"])], rows)


def _table_3(cells: Cells) -> str:
    rows = [
        [label, *_pairs([*_figures(cells, name), _costs(cells, name)[1]], [*paper, size])]
        for name, (label, paper, size) in TABLE_3.items()
    ]
    return markdown(["LSTM, distilled", *_beside([*COLUMNS, "MB"])], rows)


def _table_4(cells: Cells, key: str, paper: Mapping[int, Sequence[str]]) -> str:
    rows = []
    for units in SIZES:
        ours = [_metric(cells, f"distilled-{units}{suffix}", "average", key) for suffix in TABLE_4]
        rows.append([str(units), *_pairs(ours, paper.get(units, [DASH] * len(TABLE_4)))])
    return markdown([f"units, {key.upper()}", *_beside(TABLE_4.values())], rows)


def plot_det(path: Path, targets: np.ndarray, logits: Mapping[str, np.ndarray]) -> None:
    """DET curves as PNG, a panel an event; `targets` and each model's `logits` are [scenes, events]."""
    from matplotlib.figure import Figure
    from scipy.stats import norm
    from sklearn.metrics import DetCurveDisplay

    figure = Figure(figsize=(4.2 * len(EVENTS), 4.8), layout="constrained")
    styles = model_styles(list(logits))
    edges = norm.ppf((0.01, 0.8))
    for index, (axes, event) in enumerate(zip(figure.subplots(1, len(EVENTS)), EVENTS)):
        for name, values in logits.items():
            curve = (targets[:, index], values[:, index])
            DetCurveDisplay.from_predictions(*curve, name=name, ax=axes, **styles[name])
        axes.plot(edges, edges, color="0.7", linestyle=":")  # the EER lies on it
        axes.set(xlim=edges, ylim=edges, title=event, xlabel="false positives", ylabel="false negatives")
        axes.grid(alpha=0.3)
        axes.set_aspect("equal")
        if axes.get_legend():
            axes.get_legend().remove()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=max(len(logits), 1))
    with whole_file(path) as file:
        figure.savefig(file, dpi=100, format="png")


def main(arguments: list[str]) -> None:
    """Write the page and its figures."""
    settings = override(Settings(), arguments, prog="python -m benchmarks.paper_page", description=__doc__)
    folder, out, manifest = Path(settings.cells), Path(settings.out), Path(settings.data) / "metadata.csv"
    scenes, cells = read_scenes(manifest), read_cells(folder)
    if not cells:
        raise InputError(f"--cells: expected cells of benchmarks.paper_tables, found none in {folder}")
    logits = read_test_logits(folder, cells, scenes)
    draws = eer_draws(logits, scenes)
    shown = ("teacher", "plain-256", "distilled-256", "distilled-256-8", "distilled-256-4", "yamnet")
    plot_det(out / "det.png", scenes.targets, {name: logits[name][0] for name in shown if name in logits})
    plot_sizes(out / "eer-bytes.png", [f"distilled-{units}" for units in SIZES], (4, 8, 16), cells, draws)
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]
    with whole_file(out / "tables.md", "w") as file:
        file.write(page(cells, draws, scenes, digest))
    print(f"{out / 'tables.md'} has the tables")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
