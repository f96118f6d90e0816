"""A whole run: recordings and labels in, a teacher, its students and a table out."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qkd_jax.commands.evaluate import score_run
from qkd_jax.config import LSTMConfig, RunConfig
from qkd_jax.data.batches import Batch, from_step, train_batches
from qkd_jax.data.clips import SPLITS
from qkd_jax.data.dataset import Dataset, load_split
from qkd_jax.distill.objectives import positive_weights
from qkd_jax.errors import InputError
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.evaluation.prediction import clip_logits, make_predict
from qkd_jax.models.lstm_integer import calibrate
from qkd_jax.run_folder.folder import TEACHER, Run, open_run
from qkd_jax.run_folder.state import TrainState, begun_with, make_optimizer
from qkd_jax.system.devices import check_batch, spread, stop_all_if_asked
from qkd_jax.system.interrupt import stop_requests
from qkd_jax.training.loop import fit
from qkd_jax.training.step import make_loss, make_train_step
from qkd_jax.training.teachers import foreign_logits, make_augment, mean_logits

_CALIBRATION = 8  # batches


def train(config: RunConfig) -> Path:
    """Run `config`, or go on with it where it stopped; returns the run's folder.

    The teacher trains on the labels (eq. 1); its logits on the training clips, and those of
    teachers from files, are kept or read; each student trains on both (eq. 2), or on the labels
    alone.  At the end the best state of each is scored on the test split.  Raises InputError,
    and KeyboardInterrupt when asked to stop.
    """
    check_batch("train.batch_size", config.train.batch_size)
    with stop_requests(), open_run(config) as run:
        data, norm = prepare(run)
        for name in run.names:
            stop_all_if_asked()
            _train_model(run, name, data, norm)
        stop_all_if_asked()
        score_run(run)
        return run.folder


def prepare(run: Run) -> tuple[dict[str, Dataset], tuple[np.ndarray, np.ndarray]]:
    """The splits, and mean and standard deviation of the training features.

    Features, and the logits of teachers from files, are computed unless they are there, and kept.  What is
    wrong with any of them, with the test split or another run, shows here, not after the training.
    """
    clips = run.clips
    data = {split: load_split(run.config, clips, split, run.cache) for split in SPLITS}
    for name in run.config.students:
        run.start(name)
    foreign_logits(run, data["train"])
    return data, run.norm(data["train"].features)


def _train_model(run: Run, name: str, data: dict[str, Dataset], norm: tuple[np.ndarray, np.ndarray]) -> None:
    settings, frames = run.config.train, run.config.frames
    clips = len(data["train"].names)
    if clips < settings.batch_size:
        raise InputError(
            f"train.batch_size: expected at most the {clips} training clips, got {settings.batch_size}"
        )
    model = run.model(name)
    student = None if name == TEACHER else run.config.students[name]
    taught = student is not None and student.distill
    logits, known = None, None
    if taught and run.config.augment.on:  # the own teacher teaches live
        known = np.ones(len(data["train"].events), bool)
    elif taught:
        logits, known = mean_logits(run, data["train"])
    predict = make_predict(model)

    def validate(variables: Any) -> dict[str, float]:
        logits = clip_logits(predict, variables, data["valid"], frames, settings.batch_size)
        return evaluate(data["valid"].targets, logits, data["valid"].events)["average"]

    if student is None:
        epochs, rate = settings.teacher_epochs, settings.teacher_learning_rate
    else:
        epochs, rate = settings.student_epochs, student.learning_rate
    epoch_steps = clips // settings.batch_size
    batches_from = _batches_from(run, data["train"], logits, taught=taught)
    weight = jnp.asarray(positive_weights(data["train"].targets, run.config.distill.positive_weight))
    fit(
        make_train_step(
            model,
            make_optimizer(settings, rate, epochs * epoch_steps),
            make_loss(run.config.distill, weight, known),
            ema_decay=student.ema_decay if student else 0.0,
        ),
        first_state(run, name, norm, batches_from),
        batches_from,
        validate,
        folder=run.folder / name,
        epochs=epochs,
        epoch_steps=epoch_steps,
        patience=settings.patience,
    )


def first_state(
    run: Run,
    name: str,
    norm: tuple[np.ndarray, np.ndarray],
    batches_from: Callable[[int], Iterator[Batch]],
) -> TrainState:
    """New, or another model's best; of the integer scheme, with its units."""
    state = run.new_state(name, norm)
    if (start := run.start(name)) is None:
        return state
    network, (other, started) = run.config.networks[name], start
    state = begun_with(state, other.best_variables(started))
    if isinstance(network, LSTMConfig) and network.quant.scheme == "integer":
        batches = itertools.islice(batches_from(0), _CALIBRATION)
        exponents = calibrate(network, state.model, (batch["features"] for batch in batches))
        state = dataclasses.replace(state, variables=state.variables | {"exponents": exponents})
    return state


def _batches_from(
    run: Run, data: Dataset, logits: np.ndarray | None, *, taught: bool
) -> Callable[[int], Iterator[Batch]]:
    """The function step -> the batches from that step on, each a pure function of (seed, step)."""
    settings = run.config.train
    batches = train_batches(
        data, logits, frames=run.config.frames, batch_size=settings.batch_size, seed=settings.seed
    )
    augment = make_augment(run, taught=taught) if run.config.augment.on else lambda step, batch: batch
    return lambda first: (
        augment(step, spread(batch)) for step, batch in enumerate(from_step(batches, first), first)
    )
