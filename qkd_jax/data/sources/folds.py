"""Sources published in folds: ESC-50 (Piczak 2015) and UrbanSound8K (Salamon et al. 2014)."""

from collections import defaultdict

from qkd_jax.config import ESC50Data, UrbanSound8KData
from qkd_jax.data.clips import Clip, splits_of_folds
from qkd_jax.data.sources.walk import listed
from qkd_jax.data.tables import data_root, inside, read_table
from qkd_jax.errors import InputError, printable


def read_esc50(config: ESC50Data) -> list[Clip]:
    """The clips of ESC-50 in `config.root`, as published: `meta/esc50.csv` and `audio/*.wav`.

    A clip has one label, its category; clips cut from one recording form a group.  Splits are those of
    `splits_of_folds`: by default folds 1 to 3, 4 and 5.  A printed line names recordings in more than one
    fold.  Raises InputError that names the file, and the row or column.
    """
    return _read_folds(config, "meta/esc50.csv", ("filename", "category", "src_file"), "audio/{name}", 5)


def read_urbansound8k(config: UrbanSound8KData) -> list[Clip]:
    """The clips of UrbanSound8K in `config.root`, as published.

    The table is `metadata/UrbanSound8K.csv`, recordings are in `audio/fold1` to `audio/fold10`.  A clip has
    one label, its class; clips cut from one Freesound recording form a group.  Splits are those of
    `splits_of_folds`: by default folds 1 to 8, 9 and 10.  A printed line names recordings in more than one
    fold.  Raises InputError that names the file, and the row or column.
    """
    columns = ("slice_file_name", "class", "fsID")
    return _read_folds(config, "metadata/UrbanSound8K.csv", columns, "audio/fold{fold}/{name}", 10)


def _read_folds(
    config: ESC50Data | UrbanSound8KData, table: str, columns: tuple[str, str, str], layout: str, folds: int
) -> list[Clip]:
    """The clips of a table whose `columns` hold file, label and group."""
    root = data_root(config, table)
    filename, label, group = columns
    splits = splits_of_folds(config, range(1, folds + 1))
    clips, folds_of = [], defaultdict(set)
    for line, row in read_table(root / table, (*columns, "fold"), setting="--data.root"):
        where = f"{root / table}: row {line}"
        if row["fold"] not in splits:
            raise InputError(f"{where}: fold: expected 1 to {folds}, got {row['fold']!r}")
        name = inside(layout.format(fold=row["fold"], name=row[filename]), f"{where}: {filename}")
        folds_of[row[group]].add(row["fold"])
        clips.append(
            Clip(
                name=name,
                root=root,
                labels=frozenset({row[label]}),
                group=row[group],
                split=splits[row["fold"]],
            )
        )
    if several := sorted(group for group, folds in folds_of.items() if len(folds) > 1):
        message = f"{config.source}: the published folds hold, though these recordings are in more than one: "
        print(printable(message + listed(several, 10)), flush=True)
    return clips
