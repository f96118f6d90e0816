"""The source for one's own recordings: a folder and a table of its files."""

import csv
from collections import Counter
from pathlib import Path

from qkd_jax.config import DataConfig, InputError
from qkd_jax.data.clips import SPLITS, Clip


def read_manifest(config: DataConfig) -> list[Clip]:
    """The clips that the manifest in `config.root` lists; without a split column theirs is None.

    Columns, label separator and manifest are `config`'s.  Raises InputError that names the
    file, the row or the column.
    """
    if config.root is None:
        raise InputError(f"data.root: expected the folder that holds {config.manifest}, got none")
    root = Path(config.root)
    path = root / config.manifest
    if not path.is_file():
        raise InputError(f"data.root: expected a manifest at {path}, found none")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            columns, rows = reader.fieldnames or [], list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a table in UTF-8: {error}") from None
    for field in ("filename_column", "labels_column"):
        if (column := getattr(config, field)) not in columns:
            raise InputError(
                f"{path}: data.{field} is {column!r}, but the columns are {', '.join(columns) or 'none'}"
            )
    if not rows:
        raise InputError(f"{path}: expected a row for each recording, found none")
    for line, row in enumerate(rows, 2):
        if not row[config.filename_column]:
            raise InputError(f"{path}: row {line}: {config.filename_column}: expected a path, got none")

    def clip(row: dict[str, str]) -> Clip:
        name = row[config.filename_column]
        labels = (label.strip() for label in (row[config.labels_column] or "").split(config.label_separator))
        return Clip(
            name=name,
            path=root / name,
            labels=frozenset(label for label in labels if label),
            group=row.get(config.group_column) or name,
            split=row.get(config.split_column),
        )

    clips = [clip(row) for row in rows]
    twice = [name for name, count in Counter(clip.name for clip in clips).items() if count > 1]
    if twice:
        raise InputError(f"{path}: {len(twice)} files have more than one row, first {twice[0]}")
    missing = [clip.name for clip in clips if not clip.path.is_file()]
    if missing:
        raise InputError(f"{path}: {len(missing)} of {len(clips)} files are not there, first {missing[0]}")
    if config.split_column not in columns:
        return clips
    for line, item in enumerate(clips, 2):
        if item.split not in SPLITS:
            raise InputError(
                f"{path}: row {line}: {config.split_column}: expected {', '.join(SPLITS)}, got {item.split!r}"
            )
    return clips
