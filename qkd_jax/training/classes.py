"""All classes of the taggers behind a head: what students learn besides the events, while they train.

Posteriors of a few events say little about a clip; those of some hundred classes say much about any sound.
"""

from pathlib import Path

import numpy as np

from qkd_jax.data.arrays import read_npz
from qkd_jax.data.dataset import Dataset
from qkd_jax.distill.tagger import run_tagger
from qkd_jax.errors import InputError
from qkd_jax.run_folder.run import Run
from qkd_jax.system.devices import lacking
from qkd_jax.system.files import whole_file

_LEAST = 1e-3  # of a posterior: at 0, its logit would be minus infinity
_PRESENT, _SHARE = 0.1, 0.005
"""A class is learned if its posterior is above `_PRESENT` in at least this share of the training clips."""


def write_classes(run: Run, name: str, train: Dataset) -> None:
    """Write the posteriors that model `name` learns, float16 [clips, classes], unless they are there.

    A class's posterior is the maximum over a clip's windows.
    """
    if not run.learns_classes(name) or not lacking(path := run.classes_file(name)):
        return
    paths = dict.fromkeys(path for head in run.heads_that_teach(name) for path in head.taggers)
    columns = [np.zeros((len(train.names), 0), np.float16)]
    for tagger_path in paths:
        tagger = run_tagger(Path(tagger_path), train.clips, run.cache, run.config.data.channel)
        if tagger.config.classes is not None:
            logits = [tagger.logits(tagger.outputs(clip)).max(axis=0) for clip in range(len(train.names))]
            posteriors = np.clip(1 / (1 + np.exp(-np.stack(logits))), _LEAST, 1 - _LEAST)
            columns.append(posteriors[:, (posteriors > _PRESENT).mean(axis=0) >= _SHARE].astype(np.float16))
    classes = np.concatenate(columns, axis=1)
    with whole_file(path) as file:
        np.savez(file, classes=classes, size=classes.shape[1])


def read_classes(run: Run, name: str, clips: int) -> np.ndarray:
    """The posteriors that `write_classes` wrote, of so many clips."""
    path = run.classes_file(name)
    what = f"posteriors of {clips} clips (delete the file to compute them again)"
    classes, size = read_npz(path, what, classes=("f", 2), size=("iu", 0))
    if classes.shape != (clips, size) or not ((classes > 0) & (classes < 1)).all():
        raise InputError(f"{path}: expected {what}, found others: {classes.shape}")
    return classes
