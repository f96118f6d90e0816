"""Results as a table in the terminal."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from qkd_jax.errors import printable
from qkd_jax.evaluation.metrics import TITLES

if TYPE_CHECKING:
    from rich.table import Table

MANY = 8
"""With more events than this, only some are shown side by side."""
_FEW = 5


def print_table(results: dict[str, Any], file: TextIO | None = None) -> None:
    """Print one row per model: AUC / EER in percent, on average and of each event, then size and work.

    Other metrics are shown as averages, before the events.  `results` holds `split`, `clips`, and under
    `models` each model's `metrics` (see `evaluate`), `bytes`, and, where known, `parameters` and
    `multiply_adds`.  `file` is stdout by default.  Of more than eight events, and on a terminal that is too
    narrow, those with the highest EER are shown.
    """
    from rich.console import Console

    file = file or sys.stdout
    events = shown = list(next(iter(results["models"].values()))["metrics"]["events"])
    if len(events) > MANY:
        shown = worst_events(results["models"], _FEW)
    # Only a terminal has a width to fit.
    console = Console(file=file, width=None if file.isatty() else 200 + 40 * len(shown), highlight=False)
    unbound = console.options.update(width=10_000)
    while shown and console.measure(_table(results, shown), options=unbound).minimum > console.width:
        shown = worst_events(results["models"], len(shown) - 1)
    console.print(_table(results, shown))
    if len(shown) < len(events):
        which = f"{len(shown)} of {len(events)} events, with the highest EER" if shown else "no single events"
        console.print(f"Shown: {which}")


def print_folds(results: dict[str, dict[str, Any]], file: TextIO | None = None) -> None:
    """Print one row per model: the mean over test folds of each metric, ± its standard deviation, in percent.

    The last columns are each fold's accuracy, or EER if that is not measured.  `results` are those of
    `print_table` by fold.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    file = file or sys.stdout
    every = list(results.values())
    first = every[0]["models"]
    averages = {name: [each["models"][name]["metrics"]["average"] for each in every] for name in first}
    keys = [key for key in TITLES if all(key in each for rows in averages.values() for each in rows)]
    main = "accuracy" if "accuracy" in keys else "eer"
    clips = sum(each["clips"] for each in every)
    title = f"{clips} clips in {len(results)} test folds: mean ± standard deviation over folds, in percent"

    def table(folds: Sequence[str]) -> Table:
        more = f"; last columns: {TITLES[main]} of each fold" if folds else ""
        made = Table(title=title + more, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        made.add_column("model", no_wrap=True)
        for column in (*(TITLES[key] for key in keys), "bytes", *(f"fold {fold}" for fold in folds)):
            made.add_column(column, justify="right", min_width=7)
        for name, row in first.items():
            values = {key: np.array([each[key] for each in averages[name]]) for key in keys}
            means = (f"{value.mean():.2f} ± {value.std(ddof=1):.2f}" for value in values.values())
            of_folds = (f"{value:.2f}" for value in values[main][: len(folds)])
            made.add_row(_plain(name), *means, f"{row['bytes']:,}", *of_folds)
        return made

    # Only a terminal has a width to fit.
    console = Console(file=file, width=None if file.isatty() else 250, highlight=False)
    whole = table(list(results))
    fits = console.measure(whole, options=console.options.update(width=10_000)).maximum <= console.width
    console.print(whole if fits else table([]))


def worst_events(models: dict[str, Any], count: int) -> list[str]:
    """The `count` events with the highest EER, as the mean over models, in the order of the events."""
    metrics = [row["metrics"]["events"] for row in models.values()]
    events = list(metrics[0])
    rates = {event: -sum(row[event]["eer"] for row in metrics) for event in events}
    worst = sorted(events, key=rates.__getitem__)[:count]
    return [event for event in events if event in worst]


def drawn_events(models: dict[str, Any]) -> list[str]:
    """The events that have curves: all, or of more than eight those with the highest EER."""
    return worst_events(models, MANY)


def other_metrics(models: dict[str, Any]) -> list[str]:
    """The metrics that `models` have beside AUC and EER, in the order of `TITLES`."""
    average = next(iter(models.values()))["metrics"]["average"]
    return [key for key in TITLES if key in average and key not in ("auc", "eer")]


def _table(results: dict[str, Any], events: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    others = other_metrics(results["models"])
    titles = [TITLES[key] for key in others]
    title = f"{results['split']}: {results['clips']} clips, {', '.join(['AUC / EER', *titles])} in percent"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("model", no_wrap=True)
    for column in ("average", *titles, *events):
        # Wide enough for "97.56 /", with "7.30" on the next line.
        table.add_column(_plain(column), justify="right", min_width=7)
    for column in ("bytes", "parameters", "MACs"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in results["models"].items():
        metrics = row["metrics"]
        average, *figures = (
            f"{each['auc']:.2f} / {each['eer']:.2f}"
            for each in (metrics["average"], *map(metrics["events"].get, events))
        )
        table.add_row(
            _plain(name),
            average,
            *(f"{metrics['average'][key]:.2f}" for key in others),
            *figures,
            f"{row['bytes']:,}",
            f"{row['parameters']:,}" if "parameters" in row else "–",
            f"{row['multiply_adds'] / 1e6:,.1f} M" if "multiply_adds" in row else "–",
        )
    return table


def _plain(text: str) -> str:
    """`text` in printable characters, escaped from rich's markup."""
    from rich.markup import escape

    return escape(printable(text))
