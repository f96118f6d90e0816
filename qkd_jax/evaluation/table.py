"""Results as a table on the terminal."""

import sys
from typing import Any, TextIO


def print_table(results: dict[str, Any], file: TextIO | None = None) -> None:
    """One row a model: AUC / EER in percent on average and for each event, then size and work.

    `results` holds `split`, `clips` and, under `models`, each model's `metrics` (see `evaluate`),
    `bytes`, `parameters` and `multiply_adds`; `file` is stdout by default.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    models = results["models"]
    events = [event for event in next(iter(models.values()))["metrics"] if event != "average"]
    table = Table(
        title=f"{results['split']}: {results['clips']} clips, AUC / EER in percent", box=box.SIMPLE_HEAD
    )
    table.add_column("model", no_wrap=True)
    for column in ("average", *events, "bytes", "parameters", "MACs"):
        table.add_column(column, justify="right")
    for name, row in models.items():
        figures = (row["metrics"][event] for event in ("average", *events))
        table.add_row(
            name,
            *(f"{figure['auc']:.2f} / {figure['eer']:.2f}" for figure in figures),
            f"{row['bytes']:,}",
            f"{row['parameters']:,}",
            f"{row['multiply_adds'] / 1e6:,.1f} M",
        )
    file = file or sys.stdout
    # Where there is no terminal of some width nothing needs to be folded.
    Console(file=file, width=None if file.isatty() else 1000).print(table)
