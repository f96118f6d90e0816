"""The classes of the taggers behind a head, which students learn besides the events, while they train.

Hundreds of classes distinguish many more sounds than a few events do.
"""

from pathlib import Path

import numpy as np
from scipy.special import expit

from qkd_jax.data.arrays import read_npz
from qkd_jax.data.dataset import Dataset
from qkd_jax.distill.tagger import run_tagger
from qkd_jax.errors import InputError
from qkd_jax.run_folder.run import Run
from qkd_jax.system.devices import lacking
from qkd_jax.system.files import whole_file

_LEAST = 1e-3  # of a posterior: at 0, its logit would be minus infinity
_PRESENT, _SHARE = 0.1, 0.005
"""A class is learned if its posterior is above `_PRESENT` in at least this share of the clips."""


def write_classes(run: Run, train: Dataset) -> None:
    """Write the posteriors that students learn, float16 [clips, classes] for each head that teaches one.

    A class's posterior is the maximum over a clip's windows.  Files that are there are left as they are.
    """
    for head in dict.fromkeys(each for name in run.names for each in run.heads_of_classes(name)):
        if not lacking(path := run.classes_file(head)):
            continue
        columns = [np.zeros((len(train.names), 0), np.float16)]
        for tagger_path in run.config.heads[head].taggers:
            tagger = run_tagger(Path(tagger_path), train.clips, run.cache, run.config.data.channel)
            if tagger.config.classes is not None:
                logits = (tagger.logits(tagger.outputs(clip)).max(axis=0) for clip in range(len(train.names)))
                rows = [np.clip(expit(each), _LEAST, 1 - _LEAST).astype(np.float16) for each in logits]
                posteriors = np.stack(rows)
                columns.append(posteriors[:, (posteriors > _PRESENT).mean(axis=0) >= _SHARE])
        classes = np.concatenate(columns, axis=1)
        with whole_file(path) as file:
            np.savez(file, classes=classes, size=classes.shape[1])


def read_classes(run: Run, name: str, clips: int) -> np.ndarray | None:
    """The posteriors that model `name` learns, float16 [clips, classes]; None if there are none."""
    found = [np.zeros((clips, 0), np.float16)]
    for head in run.heads_of_classes(name):
        path = run.classes_file(head)
        what = f"posteriors of {clips} clips (delete the file to compute them again)"
        classes, size = read_npz(path, what, classes=("f", 2), size=("iu", 0))
        if classes.shape != (clips, size) or not ((classes > 0) & (classes < 1)).all():
            raise InputError(f"{path}: expected {what}, found others: {classes.shape}")
        found.append(classes)
    classes = np.concatenate(found, axis=1)
    return classes if classes.shape[1] else None
