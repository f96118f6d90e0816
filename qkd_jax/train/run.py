"""A whole run: recordings and labels in, a teacher, its students and a table out."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qkd_jax.config import Config, InputError
from qkd_jax.data.batches import from_step, train_batches
from qkd_jax.data.features import Dataset, mean_and_std
from qkd_jax.data.logits import read_logits, write_logits
from qkd_jax.data.source import load_split
from qkd_jax.distill.losses import distillation_loss, positive_weights, weighted_bce
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.evaluation.scores import clip_logits, make_predict
from qkd_jax.train.folder import TEACHER, Run, open_run
from qkd_jax.train.loop import fit
from qkd_jax.train.score import score_run
from qkd_jax.train.state import make_optimizer
from qkd_jax.train.step import make_train_step


def train(config: Config) -> Path:
    """Run `config`, or go on with it where it stopped; returns the run's folder.

    The teacher trains on the labels (eq. 1); its logits on the unaugmented training clips are
    kept with the run; each student trains on both (eq. 2), or on the labels alone.  At the end
    the best state of each is scored on the test split.  Raises InputError.
    """
    run, clips = open_run(config)
    data = {split: load_split(run.config, clips, split) for split in ("train", "valid")}
    norm = mean_and_std(data["train"].features)
    _train_model(run, TEACHER, data, norm, None)
    for name, student in run.config.students.items():
        logits = _teacher_logits(run, data["train"]) if student.distill else None
        _train_model(run, name, data, norm, logits)
    score_run(run)
    return run.folder


def _train_model(
    run: Run,
    name: str,
    data: dict[str, Dataset],
    norm: tuple[np.ndarray, np.ndarray],
    teacher_logits: np.ndarray | None,
) -> None:
    settings, frames = run.config.train, run.config.frames
    clips = len(data["train"].names)
    if clips < settings.batch_size:
        raise InputError(
            f"train.batch_size: expected at most the {clips} training clips, got {settings.batch_size}"
        )
    model = run.model(name)
    predict = make_predict(model)

    def validate(variables: Any) -> dict[str, float]:
        logits = clip_logits(predict, variables, data["valid"], frames, settings.batch_size)
        return evaluate(data["valid"].targets, logits, data["valid"].events)["average"]

    batches = train_batches(
        data["train"], teacher_logits, frames=frames, batch_size=settings.batch_size, seed=settings.seed
    )
    loss = _objective(run.config, data["train"], distill=teacher_logits is not None)
    fit(
        make_train_step(model, make_optimizer(settings), loss),
        run.new_state(name, norm),
        partial(from_step, batches),
        validate,
        folder=run.folder / name,
        epochs=settings.teacher_epochs if name == TEACHER else settings.student_epochs,
        epoch_steps=clips // settings.batch_size,
    )


def _objective(config: Config, data: Dataset, *, distill: bool) -> Callable[[jax.Array, Any], jax.Array]:
    settings = config.distill
    weight = jnp.asarray(positive_weights(data.targets, settings.positive_weight))
    if not distill:
        return lambda logits, batch: weighted_bce(logits, batch["labels"], weight)
    return lambda logits, batch: distillation_loss(
        logits,
        batch["labels"],
        batch["teacher_logits"],
        alpha=settings.alpha,
        temperature=settings.temperature,
        positive_weight=weight,
        form=settings.form,
    )


def _teacher_logits(run: Run, data: Dataset) -> np.ndarray:
    """The best teacher's logits on the training clips, computed once."""
    path = run.folder / TEACHER / "logits-train.npz"
    if not path.is_file():
        predict, variables = make_predict(run.model(TEACHER)), run.best_variables(TEACHER)
        logits = clip_logits(predict, variables, data, run.config.frames, run.config.train.batch_size)
        write_logits(path, data.names, data.events, logits)
    return read_logits(path, data.names, data.events)
