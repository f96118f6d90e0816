"""What the students are taught: logits of the run's own teacher, of foreign ones, or their mean."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from qkd_jax.audio.augment import augment
from qkd_jax.config import TRAINED
from qkd_jax.data.arrays import read_npy
from qkd_jax.data.batches import Batch
from qkd_jax.data.dataset import Dataset
from qkd_jax.data.logits import read_logits, write_logits
from qkd_jax.distill.tagger import tagger_logits
from qkd_jax.errors import InputError, printable
from qkd_jax.evaluation.prediction import clip_logits, make_predict
from qkd_jax.run_folder.folder import TEACHER, Run
from qkd_jax.system.devices import lacking
from qkd_jax.system.files import whole_file


def foreign_logits(run: Run, data: Dataset) -> np.ndarray:
    """The logits of each foreign teacher on the training clips, float32 [teachers, clips, events].

    NaN for events that a teacher doesn't know.  Kept in the run, which a change of the file
    shall not change.  Raises InputError.
    """
    path = run.folder / "foreign.npy"
    files = [Path(name) for name in run.config.distill.teachers if name != TRAINED]
    if lacking(path):
        clips = [clip for clip in run.clips if clip.split == "train" and clip.labelled]
        logits = np.zeros((len(files), *data.targets.shape), np.float32)
        for teacher, file in zip(logits, files):
            if file.suffix == ".toml":
                teacher[:] = tagger_logits(file, clips, data.events, run.cache)
            else:
                teacher[:] = read_logits(file, data.names, data.events)
            unknown = [event for event, column in zip(data.events, teacher.T) if np.isnan(column).any()]
            but = f" all but {printable(', '.join(unknown))}" if unknown else ""
            print(f"{file.name}: teaches{but}", flush=True)
        with whole_file(path) as opened:
            np.save(opened, logits)
    what = "logits of foreign teachers, asked anew if it is deleted"
    logits = read_npy(path, what, "f", 3)
    if logits.shape != (len(files), *data.targets.shape) or np.isinf(logits).any():
        raise InputError(f"{path}: expected {what}: found an array {logits.shape}")
    return logits


def own_logits(run: Run, data: Dataset) -> np.ndarray:
    """The best own teacher's logits on the unaugmented training clips, computed once."""
    # Apart from what eval.py writes, maybe midway through the training.
    path = run.folder / TEACHER / "teaching.npz"
    if lacking(path):
        predict, variables = make_predict(run.model(TEACHER)), run.best_variables(TEACHER)
        logits = clip_logits(predict, variables, data, run.config.frames, run.config.train.batch_size)
        write_logits(path, data.names, data.events, logits)
    return read_logits(path, data.names, data.events)


def mean_logits(run: Run, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the teachers' logits on the training clips, float32 [clips, events], and what they know.

    The mean is over those who know an event; the second array, bool [events], is False where
    nobody does, and the logits are 0.
    """
    logits = foreign_logits(run, data)
    if TRAINED in run.config.distill.teachers:
        logits = np.concatenate([own_logits(run, data)[None], logits])
    knows = ~np.isnan(logits).any(axis=1, keepdims=True)  # [teachers, 1, events]
    total = np.where(knows, logits, 0).sum(axis=0) / np.maximum(knows.sum(axis=0), 1)
    return total.astype(np.float32), knows.any(axis=(0, 1))


def make_augment(run: Run, *, taught: bool) -> Callable[[int, Batch], Batch]:
    """The function (step, batch) -> augmented batch, the same for each model of the run.

    If the model is `taught`, its teacher sees the augmented clips: the batch gets the own
    teacher's logits on them.
    """
    settings, seed = run.config.augment, run.config.train.seed
    teacher = run.model(TEACHER)
    variables = run.best_variables(TEACHER) if taught else None

    @jax.jit
    def augmented(variables, step, batch):
        key = jax.random.fold_in(jax.random.key(seed), step)
        features, labels = augment(key, batch["features"], batch["labels"], settings)
        batch = {"features": features, "labels": labels}
        return batch | {"teacher_logits": teacher.apply(variables, features)} if taught else batch

    return lambda step, batch: augmented(variables, step, batch)
