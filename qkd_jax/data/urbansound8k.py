"""The source for UrbanSound8K (Salamon et al. 2014)."""

from qkd_jax.config import DataConfig, InputError
from qkd_jax.data.clips import Clip
from qkd_jax.data.table import data_root, inside, read_table

_TABLE = "metadata/UrbanSound8K.csv"
_SPLITS = {str(fold): "train" for fold in range(1, 9)} | {"9": "valid", "10": "test"}


def read_urbansound8k(config: DataConfig) -> list[Clip]:
    """The clips of UrbanSound8K in `config.root`, as published.

    That is `metadata/UrbanSound8K.csv`, and the recordings in `audio/fold1` to `audio/fold10`.
    A clip has one label, its class; a group is a Freesound recording that clips were cut from.
    The published folds 1 to 8 are for training, 9 for validation, 10 for the test.  Raises
    InputError that names the file, and the row or the column.
    """
    root = data_root(config, _TABLE)
    columns = ("slice_file_name", "fsID", "fold", "class")
    clips = []
    for line, row in read_table(root / _TABLE, columns, setting="data.root"):
        if row["fold"] not in _SPLITS:
            raise InputError(f"{root / _TABLE}: row {line}: fold: expected 1 to 10, got {row['fold']!r}")
        name = inside(
            f"audio/fold{row['fold']}/{row['slice_file_name']}",
            f"{root / _TABLE}: row {line}: slice_file_name",
        )
        clips.append(
            Clip(
                name=name,
                path=root / name,
                labels=frozenset({row["class"]}),
                group=row["fsID"],
                split=_SPLITS[row["fold"]],
            )
        )
    return clips
