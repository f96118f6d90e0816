"""Plots: ROC and DET curves as PNG, and the plots of a run's report as SVG."""

import contextlib
import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qkd_jax.evaluation.metrics import kept_epoch
from qkd_jax.evaluation.timed_events import MAX_FALSE_POSITIVES, Rocs
from qkd_jax.system.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Styles = dict[str, dict[str, Any]]
"""Matplotlib keywords for the lines of each model."""

PALETTE = (
    ("#24292f", "#e6e9ed"),
    ("#278aeb", "#5299ce"),
    ("#cc8346", "#d37731"),
    ("#28695a", "#88d49b"),
    ("#73169e", "#e2b3ff"),
    ("#8c6907", "#d7b049"),
    ("#037a9e", "#73b4c4"),
    ("#8d1b0a", "#e9847c"),
)
"""Colours of models on light and on dark backgrounds: with a contrast of 3 to the background, and distinct
from each other also for colour-blind readers (simulated by Machado et al. 2009)."""

_DASHES = ("solid", "dashed", "dotted")
_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
_GREY, _BLUE = "#8a9099", (0.15, 0.54, 0.92)
_LONGEST, _WRITTEN = 24, 12
"""Longest name of an event in a confusion matrix, and most events whose counts are written into it."""
_COLUMNS = 6
"""Most events side by side."""
_STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
}


def plot_curves(
    path: Path, targets: np.ndarray, logits: dict[str, np.ndarray], events: Sequence[str]
) -> None:
    """Plot ROC (above) and DET (below, normal-deviate axes) of each event, with one line per model, as PNG.

    `targets` and each model's `logits` are [clips, events].
    """
    from matplotlib.figure import Figure

    columns = min(len(events), _COLUMNS)
    rows = -(-len(events) // columns)
    figure = Figure(figsize=(4.2 * columns, 8 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    styles = {name: {"label": name} for name in logits}
    for index, event in enumerate(events):
        row, column = divmod(index, columns)
        roc, det = axes[2 * row : 2 * row + 2, column]
        scores = {name: values[:, index] for name, values in logits.items()}
        _draw_curves(roc, det, targets[:, index], scores, styles)
        roc.set_title(event, parse_math=False)
    for blank in axes[-2:, len(events) - columns * (rows - 1) :].flat:
        blank.axis("off")
    axes[0, 0].legend(loc="lower right")
    with whole_file(path) as file, _any_script():
        figure.savefig(file, dpi=100, format="png")


def model_styles(names: Sequence[str]) -> Styles:
    """A colour of `PALETTE` for each model; from the ninth model on, a dash pattern too."""
    return {
        name: {
            "color": PALETTE[index % len(PALETTE)][0],
            "linestyle": _DASHES[index // len(PALETTE) % len(_DASHES)],
        }
        for index, name in enumerate(names)
    }


def curve_figures(
    truth: np.ndarray, scores: dict[str, np.ndarray], styles: Styles
) -> tuple["Figure", "Figure"]:
    """ROC and DET of one event; `truth` and each model's `scores` are [clips]."""
    (roc_figure, roc), (det_figure, det) = _panel(3.4, 3.4), _panel(3.4, 3.4)
    _draw_curves(roc, det, truth, scores, styles)
    return roc_figure, det_figure


def psd_roc_figures(rocs: Mapping[str, Rocs], styles: Styles) -> tuple["Figure", "Figure"]:
    """The curves of PSDS1 and PSDS2; `rocs` holds those of each model from `evaluate_timed_events`."""
    figures = []
    for scenario in ("psds1", "psds2"):
        figure, axis = _panel(3.4, 3.4)
        for name, curves in rocs.items():
            false_positives, true_positive = curves[scenario]
            axis.step(false_positives, 100 * true_positive, where="post", **styles[name])
        axis.set(xlabel="false positives per hour", ylabel="true positives, %")
        axis.set(xlim=(0, MAX_FALSE_POSITIVES), ylim=(0, 100))
        axis.grid(alpha=0.3)
        figures.append(figure)
    return figures[0], figures[1]


def size_figure(sizes: dict[str, int], values: dict[str, float], label: str, styles: Styles) -> "Figure":
    """A named point for each model, at its bytes (logarithmic) and its value."""
    height = 3.0
    figure, axis = _panel(4.6, height)
    x, y = np.log10(list(sizes.values())), np.array(list(values.values()))
    margin = max(0.12 * np.ptp(y), 0.5)
    bottom, top = y.min() - margin, y.max() + margin
    left, right = x.min() - 0.15, x.max() + 0.35 + 0.2 * np.ptp(x)  # room for the name of the largest model
    axis.set(xlim=(left, right), ylim=(bottom, top), xlabel="bytes", ylabel=label)
    ticks = [digit * 10**power for power in range(12) for digit in (1, 2, 5)]
    inside = [tick for tick in ticks if left <= np.log10(tick) <= right]
    axis.set_xticks(np.log10(inside), [size(tick) for tick in inside])
    line_height = (top - bottom) * 0.16 / height
    heights = _spread(x, y, line_height, 0.25 * (right - left))
    for name, point, beside in zip(sizes, zip(x, y), heights):
        axis.plot(*point, "o", color=styles[name]["color"])
        axis.annotate(
            name,
            point,
            (point[0] + 0.02 * (right - left), beside),
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": _GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
            parse_math=False,
        )
    return figure


def history_figure(
    history: dict[str, list[dict[str, Any]]],
    value: Callable[[dict[str, Any]], float],
    styles: Styles,
    final: bool,
) -> "Figure":
    """A `value` by epoch for each model, with a dot at the `kept_epoch`."""
    from matplotlib.ticker import MaxNLocator

    figure, axis = _panel(3.4, 2.5)
    for name, epochs in history.items():
        numbers, values = [epoch["epoch"] for epoch in epochs], [value(epoch) for epoch in epochs]
        dot = [kept_epoch(epochs, final)]
        axis.plot(numbers, values, marker="o", markersize=4, markevery=dot, **styles[name])
    longest = max(epochs[-1]["epoch"] for epochs in history.values())
    axis.set(xlabel="epoch", xlim=(0.5, longest + 0.5))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def histogram_figure(
    truth: np.ndarray, scores: np.ndarray, threshold: float, style: dict[str, Any]
) -> "Figure":
    """Histograms of logits of clips with the event (in the model's colour) and without (grey), in percent.

    `truth` and `scores` are [clips]; a dashed line marks `threshold`.
    """
    figure, axis = _panel(3.4, 2.1)
    edges = np.histogram_bin_edges(scores, 40)
    for label, color in ((0, _GREY), (1, style["color"])):
        counts, _ = np.histogram(scores[truth == label], edges)
        shares = 100 * counts / counts.sum()
        axis.stairs(shares, edges, fill=True, alpha=0.3, color=color)
        axis.stairs(shares, edges, linewidth=1.2, color=color)
    axis.axvline(threshold, color="black", linewidth=1, linestyle="--")
    axis.set(xlabel="logit", ylabel="clips, %", xlim=(edges[0], edges[-1]))
    return figure


def confusion_figure(counts: np.ndarray, events: Sequence[str]) -> "Figure":
    """A confusion matrix `counts` [events, events], events in rows, predictions in columns.

    The colour of a field is its share of the row; with few events, its count is written in it.
    """
    events = [event if len(event) <= _LONGEST else f"{event[: _LONGEST - 1]}…" for event in events]
    inside, names = 0.16 * max(len(events), 12), 0.5 + 0.07 * max(map(len, events))
    figure, axis = _panel(inside + names, inside + names, names, names)
    shares = counts / counts.sum(axis=1, keepdims=True)
    image = np.zeros((*counts.shape, 4))
    image[..., :3], image[..., 3] = _BLUE, shares
    axis.imshow(image, interpolation="nearest")
    ticks = range(len(events))
    axis.set_xticks(ticks, events, rotation=90, parse_math=False)
    axis.set_yticks(ticks, events, parse_math=False)
    axis.set(xlabel="predicted", ylabel="event")
    axis.grid(False)
    if len(events) <= _WRITTEN:
        for (row, column), count in np.ndenumerate(counts):
            axis.text(column, row, str(count), ha="center", va="center", fontsize=7)
    return figure


def to_svg(figure: "Figure", key: str) -> str:
    """`figure` as an `<svg>` for an HTML page, with ids unique to `key`.

    Text remains text, in the font and colour of the page; the colours of the palette become the variables
    --model-0, --model-1, ... of the page.
    """
    import matplotlib

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}), _any_script():
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = re.sub(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg[svg.index("<svg") :])
    # Remove ids without references, and styles that the page sets.
    svg = re.sub(r' id="[\w.]+_\d+"| font-family: [^;"]*;?|<style.*?</style>', "", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\d+\.\d+", _short, path[0]), svg)
    for index, (light, _) in enumerate(PALETTE):
        svg = svg.replace(light, f"var(--model-{index})")
    return svg.replace("#000000", "currentColor")


def size(count: int) -> str:
    """Bytes to three digits.

    >>> size(171_020)
    '171 kB'
    """
    rounded = float(f"{count:.3g}")
    power = min(int(np.log10(max(rounded, 1))) // 3, 3)
    return f"{rounded / 1000**power:g} {('B', 'kB', 'MB', 'GB')[power]}"


@contextlib.contextmanager
def _any_script() -> Iterator[None]:
    """No warnings of letters that matplotlib's font lacks: the report has them in the browser's fonts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def _short(number: re.Match[str]) -> str:
    """Round to a hundredth of a point, which is finer than a screen."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _panel(width: float, height: float, left: float = 0.52, bottom: float = 0.4) -> tuple["Figure", "Axes"]:
    """A figure of `width` x `height` inches, and its axes, with fixed margins."""
    import matplotlib
    from matplotlib.figure import Figure

    other = 0.12
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        box = (left / width, bottom / height, 1 - (left + other) / width, 1 - (bottom + other) / height)
        return figure, figure.add_axes(box)


def _draw_curves(
    roc: "Axes", det: "Axes", truth: np.ndarray, scores: dict[str, np.ndarray], styles: Styles
) -> None:
    from scipy.stats import norm
    from sklearn.metrics import roc_curve

    for name, values in scores.items():
        false_positive, true_positive, _ = roc_curve(truth, values)
        roc.plot(100 * false_positive, 100 * true_positive, **styles[name])
        inside = (false_positive > 0) & (true_positive < 1)
        det.plot(norm.ppf(false_positive[inside]), norm.ppf(1 - true_positive[inside]), **styles[name])
    roc.set(xlabel="false positives, %", ylabel="true positives, %", xlim=(0, 100), ylim=(0, 100))
    ticks = norm.ppf(_RATES)
    names = [f"{100 * rate:g}" for rate in _RATES]
    det.set_xticks(ticks, names)
    det.set_yticks(ticks, names)
    edges = (ticks[0], ticks[-1])
    det.plot(edges, edges, color="0.7", linestyle=":", linewidth=1)  # the EER lies on it
    det.set(xlabel="false positives, %", ylabel="false negatives, %", xlim=edges, ylim=edges)
    for axis in (roc, det):
        axis.grid(alpha=0.3)
        axis.set_aspect("equal")


def _spread(x: np.ndarray, y: np.ndarray, gap: float, near: float) -> np.ndarray:
    """Move `y` so that points less than `near` apart in `x` are at least `gap` apart; means stay."""
    moved = y.copy()
    order = np.argsort(x, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(x[order]) >= near) + 1):
        rising = group[np.argsort(y[group], kind="stable")]
        for below, above in itertools.pairwise(rising):
            moved[above] = max(y[above], moved[below] + gap)
        moved[rising] -= (moved[rising] - y[rising]).mean()
    return moved
