"""Results as a table on the terminal."""

import sys
from typing import Any, TextIO


def print_table(results: dict[str, Any], file: TextIO | None = None) -> None:
    """One row a model: AUC and EER (average and each event's EER), size and work."""
    from rich.console import Console
    from rich.table import Table

    models = results["models"]
    events = [event for event in next(iter(models.values()))["metrics"] if event != "average"]
    table = Table(title=f"{results['split']}: {results['clips']} clips, in percent")
    table.add_column("model")
    for column in (
        "AUC",
        "EER",
        *(f"EER {event}" for event in events),
        "bytes",
        "parameters",
        "multiply-adds",
    ):
        table.add_column(column, justify="right")
    for name, row in models.items():
        metrics = row["metrics"]
        table.add_row(
            name,
            f"{metrics['average']['auc']:.2f}",
            f"{metrics['average']['eer']:.2f}",
            *(f"{metrics[event]['eer']:.2f}" for event in events),
            f"{row['bytes']:,}",
            f"{row['parameters']:,}",
            f"{row['multiply_adds'] / 1e6:,.1f} M",
        )
    file = file or sys.stdout
    console = Console(file=file, width=None if file.isatty() else 140)
    console.print(table)
