"""Error against bytes, as a picture."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bootstrap import interval
from benchmarks.scenes import Cells, mean_eers
from qkd_jax.evaluation.plots import PALETTE
from qkd_jax.system.files import whole_file


def plot_sizes(
    path: Path,
    students: Sequence[str],
    bits: Sequence[int | str],
    cells: Cells,
    draws: Mapping[str, np.ndarray],
) -> None:
    """The average EER of each cell, with its interval, against its bytes, as PNG.

    Of each of the float `students` those at `bits`, trained, post-mortem and in the integer scheme, are
    joined by lines.
    """
    from matplotlib.figure import Figure

    series: list[tuple[list[str], str, float, dict[str, Any]]] = []
    for student, (color, _) in zip(students, PALETTE[1:]):
        trained = [*(f"{student}-{n}" for n in bits), student]
        series.append((trained, f"{student}, quantized in training", 1, {"color": color, "marker": "o"}))
        dashed = {"color": color, "marker": "x", "linestyle": "--"}
        series.append(([f"{student}-pm{n}" for n in bits], f"{student}, post-mortem", 1.06, dashed))
        dotted = {"color": color, "marker": "^", "linestyle": ":"}
        integer = [f"{student}-integer-{n}" for n in bits]
        series.append((integer, f"{student}, integer scheme", 1 / 1.03, dotted))
    others = [name for name in cells if not any(name in names for names, *_ in series)]
    for name, marker in zip(others, itertools.cycle("sD^vP*<>ph")):
        series.append(([name], name, 1 / 1.06, {"color": PALETTE[0][0], "marker": marker, "linestyle": ""}))

    def size(name: str) -> int:
        return next(iter(cells[name].values())).bytes

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes, eers = figure.subplots(), mean_eers(cells)
    for names, label, shift, style in series:
        found = sorted((name for name in names if name in cells), key=size)
        if not found:
            continue
        sizes = [size(name) * shift for name in found]
        axes.plot(sizes, [eers[name] for name in found], label=label, **style)
        low, high = zip(*[interval(draws[name]) for name in found])
        axes.vlines(sizes, low, high, style["color"], linewidth=0.8)
    axes.set(xscale="log", xlabel="bytes", ylabel="average EER, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with whole_file(path) as file:
        figure.savefig(file, dpi=100, format="png")
