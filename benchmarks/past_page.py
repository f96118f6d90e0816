"""The page of the students past the paper, from what `benchmarks.past_paper` has kept: nothing is trained.

python -m benchmarks.past_page --data DIR [--cells DIR] [--out docs/results/past]

Writes tables.md and eer-bytes.png: error against bytes and bits, beside the students of the paper, their
DenseNet-63 and YAMNet.
"""

import sys
from pathlib import Path

from pydantic.dataclasses import dataclass

from benchmarks.curves import plot_sizes
from benchmarks.findings import Finding, change, findings_table
from benchmarks.scenes import DRAWS, Cells, eer_draws, read_scenes, read_test_logits, validation
from benchmarks.standard import CELLS, EVENTS, read_cells
from benchmarks.text import DASH, markdown, spread
from qkd_jax.commands.cli import override, run_command
from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file

BESIDE = {
    "teacher": "DenseNet-63",
    "yamnet": "YAMNet, zero-shot",
    "distilled-256": "the paper's student",
    "distilled-256-4": "the paper's student, 4 bits",
}
# Largest relative EER that a student at so many bits may have over the one in float; 2 % is our "no worse".
MARGINS = {"8": 2, "4": 4, "3": 8, "2w4": 15, "2": 15}
PAPER = {"8": ("+4.7 %", "+45.5 %"), "4": ("+12.3 %", "+56.0 %")}  # against float, against its DenseNet-63


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to make the page from, and where."""

    data: str = ""
    """Folder of the recordings: only its metadata.csv is read."""
    cells: str = "docs/results/past/cells"
    """Folder of the cells."""
    out: str = "docs/results/past"
    """Folder of the page and its figure."""


def findings(student: str) -> list[Finding]:
    """What is claimed of the float `student` at each number of bits."""
    found = []
    for bits, margin in MARGINS.items():
        small, later = f"{student}-{bits}", f"{student}-pm{bits}"
        against_float, against_teacher = PAPER.get(bits, (DASH, DASH))
        found += [
            Finding(f"{small} against float", against_float, change(small, student), "<", margin),
            Finding(f"{small} against {later}", DASH, change(small, later), "<"),
            Finding(f"{small} against DenseNet-63", against_teacher, change(small, "teacher"), "<", 10),
            Finding(f"{small} against YAMNet", DASH, change(small, "yamnet"), "<"),
        ]
    for bits in ("8", "4", "3", "2"):
        integer = f"{student}-integer-{bits}"
        found += [
            Finding(f"{integer} against float", DASH, change(integer, student), "<", MARGINS[bits]),
            Finding(f"{integer} against {student}-{bits}", DASH, change(integer, f"{student}-{bits}"), "<"),
            Finding(f"{integer} against YAMNet", DASH, change(integer, "yamnet"), "<"),
        ]
    return found


def rows(cells: Cells) -> list[list[str]]:
    """A row a model: bytes, multiply-adds, AUC and EER, EER of each event, validation."""
    found = []
    for name, seeds in cells.items():
        each = list(seeds.values())
        one = each[0]
        work = DASH if one.multiply_adds is None else f"{one.multiply_adds / 1e6:,.0f}"
        figures = [
            spread([cell.metrics[column][key] for cell in each])
            for column, key in (("average", "auc"), ("average", "eer"), *((event, "eer") for event in EVENTS))
        ]
        title = BESIDE.get(name, name)
        found.append([title, f"{one.bytes:,}", work, *figures, validation(seeds), str(len(each))])
    return found


def main(arguments: list[str]) -> None:
    """Write the page and its figure."""
    settings = override(Settings(), arguments, prog="python -m benchmarks.past_page", description=__doc__)
    folder, out = Path(settings.cells), Path(settings.out)
    scenes, own = read_scenes(Path(settings.data) / "metadata.csv"), read_cells(folder)
    if not own:
        raise InputError(f"--cells: expected cells of benchmarks.past_paper, found none in {folder}")
    paper = read_cells(CELLS)
    beside = {name: paper[name] for name in BESIDE}
    logits = read_test_logits(CELLS, beside, scenes) | read_test_logits(folder, own, scenes)
    draws = eer_draws(logits, scenes)
    students = [name for name in own if f"{name}-pm4" in own]
    order = {
        name: own[name]
        for student in students
        for name in (student, *(f"{student}{kind}{n}" for kind in ("-", "-pm", "-integer-") for n in MARGINS))
        if name in own
    }
    cells = beside | order
    plot_sizes(out / "eer-bytes.png", students, tuple(MARGINS), cells, draws)
    header = ["model", "bytes", "multiply-adds, M", "AUC", "EER", *EVENTS, "validation", "seeds"]
    parts = [
        "# Students past the paper: error against bits and bytes",
        f"""Written by `python -m benchmarks.past_page`: edits would be lost. AUC and EER in percent on the
{len(scenes.names):,} test scenes, of the epoch that was best on validation; the last columns are AUC / EER
there and the seeds, of several the mean ± half their range. conv-UNITS-BITS: every operand at so many
bits in training, 2w4 weights at 2 and all else at 4; pm: the float student, quantized only afterwards;
integer: in the integer scheme, weights at so many bits, activations at 8.""",
        markdown(header, rows(cells)),
        "![EER against bytes](eer-bytes.png)",
        "## Against float, the paper's teacher and YAMNet",
        f"""Relative changes in average EER; in brackets the 95 % interval of {DRAWS:,} draws that resample
the recordings of events in the test scenes, the same draws for all models. A claim holds if the whole
interval is on its side, and doesn't if the whole interval is on the other. The paper's figures are those of
its student of 256 units, and of its own DenseNet-63.""",
        findings_table([claim for name in students for claim in findings(name)], cells, draws),
    ]
    with whole_file(out / "tables.md", "w") as file:
        file.write("\n\n".join(parts) + "\n")
    print(f"{out / 'tables.md'} has the tables")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
