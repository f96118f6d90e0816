"""Your own recordings: a folder and a table of its files."""

import functools
import sys

from qkd_jax.config import ManifestData
from qkd_jax.data.clips import SPLITS, Clip
from qkd_jax.data.tables import data_root, inside, read_table
from qkd_jax.errors import InputError


def read_manifest(config: ManifestData) -> list[Clip]:
    """The clips that the manifest in `config.root` lists; their split is None if there is no split column.

    Does not check that the recordings exist.  Raises InputError that names the file, the row or the column.
    """
    root = data_root(config, config.manifest)
    path = root / config.manifest
    columns = (config.filename_column, config.labels_column)
    delimiter = "\t" if path.suffix == ".tsv" else ","
    clips: list[Clip] = []

    @functools.cache  # recordings with the same labels share one set
    def labels_of(text: str) -> frozenset[str]:
        labels = (label.strip() for label in text.split(config.label_separator))
        return frozenset(label for label in labels if label)

    lines: dict[str, int] = {}
    hint = "; --data.filename-column and --data.labels-column name the columns to read"
    rows = read_table(
        path, columns, setting="--data.root", delimiter=delimiter, hint=hint, named_by="--data.manifest"
    )
    for line, row in rows:
        where = f"{path}: row {line}: {config.filename_column}"
        name = inside(row[config.filename_column], where)
        if name in lines:
            raise InputError(f"{where}: expected each recording once, found {name} also in row {lines[name]}")
        lines[name] = line
        split = row.get(config.split_column)
        if split not in (None, *SPLITS):
            raise InputError(
                f"{path}: row {line}: {config.split_column}: expected train, valid or test, got {split!r}"
            )
        clips.append(
            Clip(
                name=name,
                root=root,
                labels=labels_of(row[config.labels_column]),
                group=row.get(config.group_column) or name,
                split=split and sys.intern(split),
            )
        )
    return clips
