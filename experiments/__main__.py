"""Run an experiment: train the cells that have no results yet, and write its page.

    python -m experiments EXPERIMENT [DATA] [--cells NAME …] [--seeds 0 …] [--taggers DIR] [--runs DIR]
    python -m experiments EXPERIMENT --page

A cell takes 75 minutes at most on two cores of a server, and leaves figures and float16 logits in
docs/results/EXPERIMENT/cells, to be committed.  Cells whose results are there are skipped, and an
interrupted one resumes.  The page is made from the results alone.
"""

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.common import RESULTS, ROOT, argument_parser, fill
from experiments import curve, demo, esc50, few, own, paper, past, readings, scenes, sed, words
from experiments.cells import Cell, Place
from experiments.driver import chosen, run_cell
from qkd_jax.commands.cli import run_command
from qkd_jax.system.devices import use_all_cores


class Experiment(NamedTuple):
    """Cells by seed, seeds, the parts of the page, results without training, and preparation of DATA."""

    cells: Callable[[int], list[Cell]]
    parts: Callable[[Path], dict[str, str]]
    seeds: tuple[int, ...] = (0,)
    measured: Mapping[str, Callable[[Place, list[Cell]], None]] = MappingProxyType({})
    prepared: Callable[[Place], Place] | None = None


EXPERIMENTS = {
    "demo": Experiment(demo.cells, demo.parts, demo.SEEDS),
    "paper": Experiment(paper.cells, paper.parts, measured={"yamnet": paper.score_yamnet}),
    "past": Experiment(past.cells, past.parts),
    "sed": Experiment(sed.cells, sed.parts, measured={"fusion": sed.score_fusion}),
    "own": Experiment(own.cells, own.parts, own.SEEDS),
    "few": Experiment(few.cells, few.parts, few.DRAWS, prepared=few.prepared),
    "curve": Experiment(curve.cells, curve.parts, prepared=curve.prepared),
    "esc50": Experiment(esc50.cells, esc50.parts, esc50.FOLDS, prepared=esc50.prepared),
    "scenes": Experiment(scenes.cells, scenes.parts, scenes.SEEDS),
    "words": Experiment(words.cells, words.parts, words.SEEDS, prepared=words.prepared),
    "readings": Experiment(readings.cells, readings.parts),
}

IN_README = ("demo", "own")
"""Experiments of which the part of their own name stands in the README too."""


def run(name: str, place: Place, names: list[str], seeds: list[int]) -> None:
    """Train the cells `names` that lack results, all by default, and measure what needs no training."""
    experiment = EXPERIMENTS[name]
    cells = [cell for seed in seeds or experiment.seeds for cell in experiment.cells(seed)]
    trained = [each for each in names if each not in experiment.measured]
    use_all_cores(cells[0].config.recipe.batch_size)
    if experiment.prepared:
        place = experiment.prepared(place)
    for cell in chosen(cells, trained) if trained or not names else []:
        print(f"{cell.name}-{cell.part}", flush=True)
        run_cell(cell, place, cells)
    for measured, measure in experiment.measured.items():
        if (not names or measured in names) and not place.path(measured).is_file():
            measure(place, cells)


def write_page(name: str, results: Path = RESULTS) -> None:
    """Fill the marked parts of RESULTS/NAME.md from the results in RESULTS/NAME/cells, and of the README."""
    pages = {results / f"{name}.md": EXPERIMENTS[name].parts(results / name)}
    if name in IN_README and results == RESULTS:
        pages[ROOT / "README.md"] = {
            each: EXPERIMENTS[each].parts(results / each)[each] for each in IN_README
        }
    for page, parts_of_page in pages.items():
        fill(page, parts_of_page)
        print(f"{page} has the tables")


def main(arguments: list[str]) -> None:
    """Train, or write the page."""
    parser = argument_parser("python -m experiments", __doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("data", nargs="?", type=Path, help="folder of the recordings; the demo has none")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--cells", nargs="+", default=[], help="which cells; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="which seeds")
    parser.add_argument("--runs", type=Path, help="folder of the runs; runs/EXPERIMENT by default")
    parser.add_argument(
        "--taggers", type=Path, default=ROOT / "experiments", help="folder of yamnet.toml beside its models"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results and pages")
    options = parser.parse_args(arguments)
    if not options.page:
        if options.data is None and options.experiment != "demo":
            parser.error("DATA: expected the folder of the recordings")
        place = Place(
            options.data,
            (options.runs or Path("runs", options.experiment)).absolute(),
            options.results / options.experiment / "cells",
            options.taggers,
            f"python -m experiments {shlex.join(arguments)}",
        )
        run(options.experiment, place, options.cells, options.seeds)
    write_page(options.experiment, options.results)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
