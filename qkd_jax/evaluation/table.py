"""Results as a table on the terminal."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from qkd_jax.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

SOUNDS = {
    "psds1": "PSDS1",
    "psds2": "PSDS2",
    "event_f1": "event F1",
    "segment_f1": "segment F1",
    "intersection_f1": "intersection F1",
}
"""The metrics of sound events that tables show, and their names there."""


def print_table(results: dict[str, Any], file: TextIO | None = None) -> None:
    """One row a model: AUC / EER in percent on average and for each event, then size and work.

    Where there are metrics of sound events, their averages come before the events.
    `results` holds `split`, `clips` and, under `models`, each model's `metrics` (see `evaluate`),
    `bytes`, and where they are known `parameters` and `multiply_adds`; `file` is stdout by default.  On a
    terminal, events for which there is no room are left out.
    """
    from rich.console import Console

    file = file or sys.stdout
    events = [event for event in next(iter(results["models"].values()))["metrics"] if event != "average"]
    # Where there is no terminal of some width nothing needs to be folded.
    console = Console(file=file, width=None if file.isatty() else 100 + 40 * len(events), highlight=False)
    shown, unbound = len(events), console.options.update(width=10_000)
    while shown and console.measure(_table(results, events[:shown]), options=unbound).minimum > console.width:
        shown -= 1
    console.print(_table(results, events[:shown]))
    if shown < len(events):
        console.print(f"{len(events) - shown} of {len(events)} events are left out for want of width")


def _table(results: dict[str, Any], events: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    first = next(iter(results["models"].values()))["metrics"]["average"]
    sounds = [title for key, title in SOUNDS.items() if key in first]
    title = f"{results['split']}: {results['clips']} clips, {', '.join(['AUC / EER', *sounds])} in percent"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("model", no_wrap=True)
    for column in ("average", *sounds, *events):
        # 97.56 / on one line, 7.30 on the next
        table.add_column(_plain(column), justify="right", min_width=7)
    for column in ("bytes", "parameters", "MACs"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in results["models"].items():
        average, *figures = (
            f"{row['metrics'][event]['auc']:.2f} / {row['metrics'][event]['eer']:.2f}"
            for event in ("average", *events)
        )
        table.add_row(
            _plain(name),
            average,
            *(f"{value:.2f}" for key, value in row["metrics"]["average"].items() if key in SOUNDS),
            *figures,
            f"{row['bytes']:,}",
            f"{row['parameters']:,}" if "parameters" in row else "–",
            f"{row['multiply_adds'] / 1e6:,.1f} M" if "multiply_adds" in row else "–",
        )
    return table


def _plain(text: str) -> str:
    """`text` as rich shows it, whose markup it isn't."""
    from rich.markup import escape

    return escape(printable(text))
