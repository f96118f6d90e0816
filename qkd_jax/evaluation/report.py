"""The report of a run: one self-contained HTML file, with links to the recordings."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from qkd_jax.evaluation.html import link, write_page
from qkd_jax.evaluation.metrics import TITLES, confusion, eer_threshold
from qkd_jax.evaluation.plots import (
    PALETTE,
    Styles,
    confusion_figure,
    curve_figures,
    histogram_figure,
    history_figure,
    model_styles,
    psd_roc_figures,
    size,
    size_figure,
    to_svg,
)
from qkd_jax.evaluation.table import drawn_events, other_metrics
from qkd_jax.evaluation.timed_events import Rocs

_WORST, _FREQUENT = 5, 10


def write_report(
    path: Path,
    results: dict[str, Any],
    *,
    title: str,
    targets: np.ndarray,
    logits: dict[str, np.ndarray],
    clips: dict[str, Path],
    history: dict[str, list[dict[str, Any]]],
    config_json: str,
    versions: dict[str, str],
    teachers: Collection[str] = (),
    rocs: Mapping[str, Rocs] | None = None,
    final: bool = False,
) -> None:
    """Write the report of the run `title` to `path`, an HTML file; equal arguments give equal bytes.

    `results` is the argument of `print_table`; `targets` and each model's `logits` are [clips, events], and
    `clips` maps the name of each recording to its path, in the same order.  `history` lists each model's
    epochs: `epoch`, `epoch_loss`, and under `valid` the metrics in percent; models without epochs may be
    missing, and with `final` the last epochs were kept, not the best.  `rocs` are each model's curves from
    `evaluate_timed_events`.  `teachers` names the teachers among the models: students are compared with the
    largest of them, not ranked against them.  Of more than eight events, those with the highest EER have
    curves and errors; all are in a table of their own.
    """
    models = results["models"]
    first = next(iter(models.values()))["metrics"]
    events, others = list(first["events"]), other_metrics(models)
    shown = drawn_events(models)
    columns = [events.index(event) for event in shown]
    students = [name for name in models if name not in teachers] or list(models)
    smallest = min(
        students, key=lambda name: (models[name]["bytes"], models[name]["metrics"]["average"]["eer"])
    )
    styles = model_styles(list(models))
    write_page(
        path,
        "report.html.jinja",
        title=title,
        results=results,
        events=shown,
        all_events=events,
        swatches=_swatches(styles),
        smallest=smallest,
        tiles=_tiles(models, smallest, teachers),
        others=[TITLES[key] for key in others],
        timed="psds1" in others,
        accuracy="accuracy" in others,
        table=_table(models, events if shown == events else [], others, students),
        by_event=[] if shown == events else _by_event(models, events),
        confusions=_confusions(targets, logits, events, smallest) if "accuracy" in others else {},
        sizes=_sizes(models, styles),
        psd_rocs=_psd_rocs(rocs, styles) if rocs else {},
        curves=_curves(targets, logits, columns, styles),
        learning=_learning(history, styles, final),
        final=final,
        # The smallest first, because it is the one to deploy.
        errors={
            name: _errors(targets, logits[name], columns, events, clips, styles[name], f"scores-{index}")
            for index, name in enumerate(sorted(models, key=lambda name: name != smallest))
        },
        config=config_json,
        versions=versions,
    )


def _swatches(styles: Styles) -> dict[str, str]:
    """CSS of a line in the style of each model."""
    return {
        name: f"{style['linestyle']} var(--model-{index % len(PALETTE)})"
        for index, (name, style) in enumerate(styles.items())
    }


def _tiles(models: dict[str, Any], name: str, teachers: Collection[str]) -> list[tuple[str, str, str]]:
    """Key figures of the model `name`: label, figure, and that of the largest teacher."""
    row, figures = models[name], models[name]["metrics"]["average"]
    others = [other for other in models if other in teachers and other != name]
    teacher = max(others, key=lambda other: models[other]["bytes"], default="")
    compared = models[teacher]["metrics"]["average"] if teacher else {}
    parameters = f"{row['parameters']:,} parameters" if "parameters" in row else ""
    tiles = [("size", size(row["bytes"]), parameters)]
    if teacher and models[teacher]["bytes"] > row["bytes"]:
        ratio = models[teacher]["bytes"] / row["bytes"]
        tiles.append(("smaller by", f"{ratio:,.1f} ×", f"{teacher} {size(models[teacher]['bytes'])}"))
    for key in ("accuracy", "auc", "eer"):
        if key in figures:
            note = f"{teacher} {compared[key]:.2f} %" if teacher else ""
            title = TITLES[key] if key == "accuracy" else f"average {TITLES[key]}"
            tiles.append((title, f"{figures[key]:.2f} %", note))
    return tiles


def _table(
    models: dict[str, Any], events: Sequence[str], others: Sequence[str], students: Sequence[str]
) -> dict[str, list[tuple[str, bool]]]:
    """The cells of each model's row: text, and whether it is the best of students that differ."""
    figures = {
        name: [
            *(row["metrics"]["average"][key] for key in ("auc", "eer")),
            *(row["metrics"]["events"][event][key] for event in events for key in ("auc", "eer")),
            *(row["metrics"]["average"][key] for key in others),
            *(row["bytes"], row.get("parameters")),
            *((row.get(key, 0) / 1e6 or None) for key in ("multiply_adds", "quantized_values")),
        ]
        for name, row in models.items()
    }
    rates = 2 + 2 * len(events)
    formats = ["{:.2f}"] * (rates + len(others)) + ["{:,}", "{:,}", "{:,.1f} M", "{:,.2f} M"]
    ranges = []
    for column in range(len(formats)):
        values = [figures[name][column] or 0 for name in students]
        more_is_better = column % 2 == 0 if column < rates else column < rates + len(others)
        ranges.append((max(values), min(values)) if more_is_better else (min(values), max(values)))
    return {
        name: [
            ("–" if value is None else form.format(value), name in students and value == best != worst)
            for value, form, (best, worst) in zip(row, formats, ranges)
        ]
        for name, row in figures.items()
    }


def _by_event(models: dict[str, Any], events: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each event with AUC and EER of each model as text, the highest EER first."""
    figures = {event: [row["metrics"]["events"][event] for row in models.values()] for event in events}
    order = sorted(events, key=lambda event: -sum(each["eer"] for each in figures[event]))
    return [
        (event, [f"{each[key]:.2f}" for each in figures[event] for key in ("auc", "eer")]) for event in order
    ]


def _confusions(
    targets: np.ndarray, logits: dict[str, np.ndarray], events: Sequence[str], first: str
) -> dict[str, tuple[str, list[tuple[str, str, int, int]]]]:
    """For each model, `first` first, its confusion matrix as SVG and its most frequent errors.

    An error is an event, the event that is predicted, how often, and of how many clips.
    """
    pages = {}
    for index, name in enumerate(sorted(logits, key=lambda name: name != first)):
        counts = confusion(targets, logits[name])
        wrong = counts - np.diag(counts.diagonal())
        order = np.argsort(-wrong, axis=None, kind="stable")[:_FREQUENT]
        errors = [
            (events[truth], events[guess], int(wrong[truth, guess]), int(counts[truth].sum()))
            for truth, guess in zip(*np.unravel_index(order, wrong.shape))
            if wrong[truth, guess]
        ]
        pages[name] = to_svg(confusion_figure(counts, events), f"confusion-{index}"), errors
    return pages


def _sizes(models: dict[str, Any], styles: Styles) -> dict[str, str]:
    """Average EER, AUC, and PSDS if measured, against bytes, as SVG."""
    sizes = {name: row["bytes"] for name, row in models.items()}
    plots = {}
    labels = {"accuracy": "accuracy, %", "eer": "average EER, %", "auc": "average AUC, %"}
    labels |= {"psds1": "PSDS1, %", "psds2": "PSDS2, %"}
    first = next(iter(models.values()))["metrics"]["average"]
    for key, label in labels.items():
        if key not in first:
            continue
        values = {name: row["metrics"]["average"][key] for name, row in models.items()}
        plots[label] = to_svg(size_figure(sizes, values, label, styles), f"size-{key}")
    return plots


def _psd_rocs(rocs: Mapping[str, Rocs], styles: Styles) -> dict[str, str]:
    figures = psd_roc_figures(rocs, styles)
    return {label: to_svg(figure, f"psd-roc-{label}") for label, figure in zip(("PSDS1", "PSDS2"), figures)}


def _curves(
    targets: np.ndarray, logits: dict[str, np.ndarray], columns: Sequence[int], styles: Styles
) -> list[tuple[str, str]]:
    """ROC and DET of the events in some `columns`, as SVG."""
    plots = []
    for column in columns:
        truth = targets[:, column]
        scores = {name: logits[name][:, column] for name in styles}
        roc, det = curve_figures(truth, scores, styles)
        plots.append((to_svg(roc, f"roc-{column}"), to_svg(det, f"det-{column}")))
    return plots


def _learning(history: dict[str, list[dict[str, Any]]], styles: Styles, final: bool) -> dict[str, str]:
    """Loss and validation metrics by epoch, as SVG; empty if no model has epochs."""
    epochs = {name: history[name] for name in styles if history.get(name)}
    if not epochs:
        return {}
    values: dict[str, Callable[[dict[str, Any]], float]] = {"training loss": itemgetter("epoch_loss")}
    for key in next(iter(epochs.values()))[0]["valid"]:
        values[f"validation {TITLES[key]}, %"] = partial(_valid, key)
    return {
        label: to_svg(history_figure(epochs, value, styles, final), label.replace(" ", "-"))
        for label, value in values.items()
    }


def _valid(key: str, epoch: dict[str, Any]) -> float:
    return epoch["valid"].get(key, float("nan"))


def _errors(
    targets: np.ndarray,
    logits: np.ndarray,
    columns: Sequence[int],
    events: Sequence[str],
    clips: dict[str, Path],
    style: dict[str, Any],
    key: str,
) -> list[dict[str, Any]]:
    """The errors of a model for the events in some `columns`.

    That is a histogram of logits as SVG, the threshold, and the worst clips.
    """
    errors = []
    for column in columns:
        truth, scores = targets[:, column], logits[:, column]
        threshold = eer_threshold(truth, scores)
        rising, falling = np.argsort(scores, kind="stable"), np.argsort(-scores, kind="stable")
        worst = {
            "False alarms": falling[truth[falling] == 0][:_WORST],
            "Misses": rising[truth[rising] == 1][:_WORST],
        }
        errors.append(
            {
                "event": events[column],
                "plot": to_svg(histogram_figure(truth, scores, threshold, style), f"{key}-{column}"),
                "threshold": threshold,
                "worst": {
                    kind: [_clip(clip, targets, scores, events, clips) for clip in indices.tolist()]
                    for kind, indices in worst.items()
                },
            }
        )
    return errors


def _clip(
    index: int, targets: np.ndarray, scores: np.ndarray, events: Sequence[str], clips: dict[str, Path]
) -> dict[str, Any]:
    from scipy.special import expit

    name, path = list(clips.items())[index]
    return {
        "name": name,
        "uri": link(name, path),
        "labels": [event for event, there in zip(events, targets[index]) if there],
        "logit": float(scores[index]),
        "probability": float(expit(scores[index])),
    }
