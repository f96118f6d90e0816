"""Tables of recordings: those of data sets, and those that experiments write for a run."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

COLUMNS = ("filename", "labels", "split", "group")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of the table at `path`."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Iterable[Mapping[str, str]], columns: tuple[str, ...] = COLUMNS) -> None:
    """Write `columns` of `rows`; others are left out."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
