"""The source for ESC-50 (Piczak 2015)."""

from qkd_jax.config import DataConfig, InputError
from qkd_jax.data.clips import Clip
from qkd_jax.data.table import data_root, inside, read_table

_TABLE = "meta/esc50.csv"
_SPLITS = {"1": "train", "2": "train", "3": "train", "4": "valid", "5": "test"}


def read_esc50(config: DataConfig) -> list[Clip]:
    """The clips of ESC-50 in `config.root`, as published: `meta/esc50.csv` and `audio/*.wav`.

    A clip has one label, its category; a group is a recording that clips were cut from.  The
    published folds 1 to 3 are for training, 4 for validation, 5 for the test.  Raises InputError
    that names the file, and the row or the column.
    """
    root = data_root(config, _TABLE)
    columns = ("filename", "fold", "category", "src_file")
    clips = []
    for line, row in read_table(root / _TABLE, columns, setting="data.root"):
        if row["fold"] not in _SPLITS:
            raise InputError(f"{root / _TABLE}: row {line}: fold: expected 1 to 5, got {row['fold']!r}")
        name = inside(f"audio/{row['filename']}", f"{root / _TABLE}: row {line}: filename")
        clips.append(
            Clip(
                name=name,
                path=root / name,
                labels=frozenset({row["category"]}),
                group=row["src_file"],
                split=_SPLITS[row["fold"]],
            )
        )
    return clips
