"""ROC and DET curves as pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6)


def plot_curves(
    path: Path, targets: np.ndarray, logits: dict[str, np.ndarray], events: Sequence[str]
) -> None:
    """ROC (above) and DET (below, normal-deviate axes) of each event, a line a model, as PNG.

    `targets` and each model's `logits` are [clips, events].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from scipy.stats import norm
    from sklearn.metrics import roc_curve

    figure = Figure(figsize=(4.2 * len(events), 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(events), squeeze=False)
    for column, event in enumerate(events):
        roc, det = axes[:, column]
        for name, scores in logits.items():
            false_positive, true_positive, _ = roc_curve(targets[:, column], scores[:, column])
            roc.plot(100 * false_positive, 100 * true_positive, label=name)
            inside = (false_positive > 0) & (true_positive < 1)
            det.plot(norm.ppf(false_positive[inside]), norm.ppf(1 - true_positive[inside]), label=name)
        roc.set(
            title=event, xlabel="false positives, %", ylabel="true positives, %", xlim=(0, 100), ylim=(0, 100)
        )
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
    axes[0, 0].legend(loc="lower right")
    figure.savefig(path, dpi=100)
