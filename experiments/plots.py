"""Pictures of an experiment: error against bytes, and DET curves."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import EVENTS
from experiments.bootstrap import interval, mean_eers
from experiments.cells import Results
from qkd_jax.evaluation.plots import PALETTE, model_styles
from qkd_jax.system.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_sizes(
    path: Path,
    students: Sequence[str],
    bits: Sequence[int | str],
    results: Results,
    draws: Mapping[str, np.ndarray],
) -> None:
    """Plot the average EER of each model, with its interval, against its bytes, as PNG.

    Lines join the versions of each of the float `students` at `bits`: quantized in training, after it,
    and in the integer-only scheme.
    """
    from matplotlib.figure import Figure

    series: list[tuple[list[str], str, float, dict[str, Any]]] = []  # with a shift that keeps points apart
    kinds = ("", "quantized in training", 1, "o", "-"), ("pm", "after training", 1.06, "x", "--")
    for student, (color, _) in zip(students, PALETTE[1:]):
        for kind, label, shift, marker, line in (
            *kinds,
            ("integer-", "integer-only scheme", 1 / 1.03, "^", ":"),
        ):
            names = [f"{student}-{kind}{n}" for n in bits] + [student] * (not kind)
            style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": line}
            series.append((names, f"{student}, {label}", shift, style))
    others = [name for name in results if not any(name in names for names, *_ in series)]
    for name, marker in zip(others, itertools.cycle("sD^vP*<>ph")):
        series.append(([name], name, 1 / 1.06, {"color": PALETTE[0][0], "marker": marker, "linestyle": ""}))

    def size(name: str) -> int:
        return next(iter(results[name].values())).bytes

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes, eers = figure.subplots(), mean_eers(results)
    for names, label, shift, style in series:
        present = sorted((name for name in names if name in results), key=size)
        if not present:
            continue
        sizes = [size(name) * shift for name in present]
        axes.plot(sizes, [eers[name] for name in present], label=label, **style)
        low, high = zip(*[interval(draws[name]) for name in present])
        axes.vlines(sizes, low, high, style["color"], linewidth=0.8)
    axes.set(xscale="log", xlabel="bytes", ylabel="average EER, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_det(path: Path, targets: np.ndarray, logits: Mapping[str, np.ndarray]) -> None:
    """Plot DET curves as PNG, a panel per event; `targets` and `logits` are [scenes, events]."""
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
    _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    """Save as PNG in 64 colours, a third of the bytes of full colour."""
    import io

    from PIL import Image

    full = io.BytesIO()
    figure.savefig(full, dpi=100, format="png")
    with whole_file(path) as file:
        Image.open(full).convert("RGB").quantize(64).save(file, "png", optimize=True)
