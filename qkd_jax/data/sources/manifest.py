"""Your own recordings: a folder and a table of its files."""

import dataclasses
import functools
import os

from qkd_jax.config import ManifestData
from qkd_jax.data.clips import Clip, splits_of_folds
from qkd_jax.data.sources.walk import recordings_below
from qkd_jax.data.tables import data_root, inside, plain, read_table, split_of
from qkd_jax.errors import InputError


def read_manifest(config: ManifestData) -> list[Clip]:
    """The clips that the manifest in `config.root` lists; their split is None if there is no split column.

    With `config.folds`, splits come from the fold column instead (`splits_of_folds`).
    Does not check that the recordings exist.  Raises InputError that names the file, the row or the column.
    """
    root = data_root(config, config.manifest)
    path = root / config.manifest
    if not path.is_file() and any(os.sep in name for name in recordings_below(root)):
        raise InputError(
            f"--data.root: expected a table at {path}, found none; --data.source folders reads a folder per "
            "class, --data.source timed, audacity or raven timed labels"
        )

    @functools.cache  # recordings with the same labels share one set
    def labels_of(text: str) -> frozenset[str]:
        return frozenset(filter(None, map(plain, text.split(config.label_separator))))

    clips: list[Clip] = []
    lines: dict[str, int] = {}
    columns = [config.filename_column, config.labels_column]
    rows = read_table(
        path,
        (*columns, config.fold_column) if config.folds else columns,
        setting="--data.root",
        optional=(config.split_column, config.group_column),
        hint="; --data.filename-column and --data.labels-column name the columns to read"
        + (", --data.fold-column that of folds" if config.folds else ""),
    )
    folds: list[int] = []
    for line, row in rows:
        where = f"{path}: row {line}"
        name = inside(row[config.filename_column], f"{where}: {config.filename_column}")
        if name in lines:
            raise InputError(
                f"{where}: {config.filename_column}: expected each recording once, "
                f"found {name} also in row {lines[name]}"
            )
        lines[name] = line
        if config.folds:
            folds.append(_number(row[config.fold_column], f"{where}: {config.fold_column}"))
        split = None if config.folds else row.get(config.split_column)
        clips.append(
            Clip(
                name=name,
                root=root,
                labels=labels_of(row[config.labels_column]),
                group=row.get(config.group_column) or name,
                split=None if split is None else split_of(split, f"{where}: {config.split_column}"),
            )
        )
    if config.folds:
        splits = splits_of_folds(config, set(folds))
        clips = [dataclasses.replace(clip, split=splits[str(fold)]) for clip, fold in zip(clips, folds)]
    return clips


def _number(text: str, where: str) -> int:
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise InputError(f"{where}: expected the number of a fold, from 1, got {text!r}")
