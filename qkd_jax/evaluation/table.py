"""Results as a table in the terminal."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from qkd_jax.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

TIMED_METRICS = {
    "psds1": "PSDS1",
    "psds2": "PSDS2",
    "event_f1": "event F1",
    "segment_f1": "segment F1",
    "intersection_f1": "intersection F1",
}
"""Metrics of timed events that tables show, with their titles."""


def print_table(results: dict[str, Any], file: TextIO | None = None) -> None:
    """Print one row per model: AUC / EER in percent, on average and of each event, then size and work.

    Metrics of timed events, if there are any, are shown as averages, before the events.  `results` holds
    `split`, `clips`, and under `models` each model's `metrics` (see `evaluate`), `bytes`, and, where known,
    `parameters` and `multiply_adds`.  `file` is stdout by default.  On a terminal that is too narrow, the
    last events are left out.
    """
    from rich.console import Console

    file = file or sys.stdout
    events = list(next(iter(results["models"].values()))["metrics"]["events"])
    # Only a terminal has a width to fit.
    console = Console(file=file, width=None if file.isatty() else 100 + 40 * len(events), highlight=False)
    shown, unbound = len(events), console.options.update(width=10_000)
    while shown and console.measure(_table(results, events[:shown]), options=unbound).minimum > console.width:
        shown -= 1
    console.print(_table(results, events[:shown]))
    if shown < len(events):
        console.print(f"{len(events) - shown} of {len(events)} events don't fit in this width")


def _table(results: dict[str, Any], events: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    first = next(iter(results["models"].values()))["metrics"]["average"]
    timed = [title for key, title in TIMED_METRICS.items() if key in first]
    title = f"{results['split']}: {results['clips']} clips, {', '.join(['AUC / EER', *timed])} in percent"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("model", no_wrap=True)
    for column in ("average", *timed, *events):
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
            *(f"{value:.2f}" for key, value in metrics["average"].items() if key in TIMED_METRICS),
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
