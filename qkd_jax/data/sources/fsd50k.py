"""FSD50K (Fonseca et al. 2022) as published."""

from qkd_jax.config import FSD50KData
from qkd_jax.data.clips import Clip
from qkd_jax.data.tables import data_root, inside, read_table, split_of


def read_fsd50k(config: FSD50KData) -> list[Clip]:
    """The clips of FSD50K in `config.root`, as published.

    The tables are `FSD50K.ground_truth/dev.csv` and `eval.csv`, the recordings `FSD50K.dev_audio/*.wav` and
    `FSD50K.eval_audio/*.wav`.  The development set has the splits train and val, for training and validation;
    the evaluation set is the test.  Labels are as published, with the classes above them in AudioSet's
    ontology.  The group is the name.  Raises InputError that names the file, and the row or column.
    """
    root = data_root(config, "FSD50K.ground_truth/dev.csv")
    clips = []
    for part in ("dev", "eval"):
        path = root / f"FSD50K.ground_truth/{part}.csv"
        columns = ("fname", "labels", "split") if part == "dev" else ("fname", "labels")
        for line, row in read_table(path, columns, setting="--data.root"):
            where = f"{path}: row {line}"
            name = inside(f"FSD50K.{part}_audio/{row['fname']}.wav", f"{where}: fname")
            clips.append(
                Clip(
                    name=name,
                    root=root,
                    labels=frozenset(filter(None, map(str.strip, row["labels"].split(",")))),
                    group=name,
                    split=split_of(row["split"], f"{where}: split") if part == "dev" else "test",
                )
            )
    return clips
