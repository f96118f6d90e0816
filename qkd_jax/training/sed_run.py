"""A whole run of sound event detection: recordings and labels in, models and a table out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qkd_jax.audio.augment import augment_frames
from qkd_jax.commands.evaluate import score_run, sound_event_metrics
from qkd_jax.config import RunConfig
from qkd_jax.data.batches import Batch, from_step
from qkd_jax.data.clips import SPLITS
from qkd_jax.data.timed import SedDataset, load_sed_split, sed_batches
from qkd_jax.errors import InputError
from qkd_jax.evaluation.prediction import make_detect, step_logits
from qkd_jax.evaluation.timed_events import load_sed_scores_eval
from qkd_jax.run_folder.folder import Run, open_run
from qkd_jax.system.devices import check_batch, spread, stop_all_if_asked
from qkd_jax.system.interrupt import stop_requests
from qkd_jax.training.loop import fit
from qkd_jax.training.run import first_state
from qkd_jax.training.sed_step import make_sed_step
from qkd_jax.training.sed_teachers import check_teachers, keep_embeddings, taught


def train_sed(config: RunConfig) -> Path:
    """Run `config`, or go on with it where it stopped; returns the run's folder.

    The models train in their order, each from labels, its mean student and those before it that teach it;
    at the end the best state of each, its mean student, is scored on the test split.  Raises InputError,
    and KeyboardInterrupt when asked to stop.
    """
    settings = config.train
    size = settings.strong + settings.weak + settings.unlabelled
    check_batch("train.strong, .weak and .unlabelled together", size)
    with stop_requests(), open_run(config) as run:
        clips = run.clips
        # The test split too, for what is wrong with it shall not show after the training.
        data = {split: load_sed_split(run.config, clips, split, run.cache) for split in SPLITS}
        norm = run.norm(data["train"].features)
        _check(run, data["train"])
        for name in run.names:
            stop_all_if_asked()
            _train_model(run, name, data, norm)
        stop_all_if_asked()
        score_run(run)
        return run.folder


def _check(run: Run[RunConfig], train: SedDataset) -> None:
    """Raise InputError for what would else show only after some models have trained."""
    config = run.config
    if not config.models:
        raise InputError("models: expected at least one, got none")
    if config.train.strong > (strong := (train.kind == 0).sum()):
        raise InputError(
            f"train.strong: expected at most the {strong} strongly labelled clips, got {config.train.strong}"
        )
    load_sed_scores_eval()
    longest = max(map(len, train.features))
    for name, model in config.models.items():
        if (model.teachers or model.embeddings) and longest - config.frames >= model.network.span[1]:
            raise InputError(
                f"models.{name}: expected training recordings of at most data.clip_seconds = "
                f"{config.data.clip_seconds:g} where others teach, found one of {longest} frames "
                f"against {config.frames}"
            )
        check_teachers(config, name, train)
        if model.embeddings is not None and model.embeddings.endswith(".toml"):
            keep_embeddings(run, name, train)


def _train_model(
    run: Run[RunConfig], name: str, data: dict[str, SedDataset], norm: tuple[np.ndarray, np.ndarray]
) -> None:
    config, settings = run.config.models[name], run.config.train
    keep_embeddings(run, name, data["train"])
    model = run.model(name)
    epoch_steps = int((data["train"].kind == 0).sum()) // settings.strong
    detect = make_detect(model)

    def validate(variables: Any) -> dict[str, float]:
        logits = step_logits(detect, variables, data["valid"], run.config.frames, config.network)
        table, _ = sound_event_metrics(run.config, config.network, data["valid"], *logits, f1=False)
        figures = table["average"]
        both = (figures["psds1"] + figures["psds2"]) / 2
        return {"psds": both, **{key: figures[key] for key in ("psds1", "psds2", "auc", "eer")}}

    batches_from = _batches_from(run, name, data)
    epochs = config.epochs or settings.epochs
    fit(
        make_sed_step(model, config, settings, epochs * epoch_steps),
        first_state(run, name, norm, batches_from),
        batches_from,
        validate,
        folder=run.folder / name,
        epochs=epochs,
        epoch_steps=epoch_steps,
        patience=settings.patience,
    )


def _batches_from(
    run: Run[RunConfig], name: str, data: dict[str, SedDataset]
) -> Callable[[int], Iterator[Batch]]:
    """The function step -> the batches from that step on, each a pure function of (seed, step)."""
    config, settings = run.config, run.config.train
    sizes = (settings.strong, settings.weak, settings.unlabelled)
    _, hop = config.models[name].network.span
    batches = sed_batches(
        data["train"],
        frames=config.frames,
        sizes=sizes,
        seed=settings.seed,
        hop=hop,
        **taught(run, name, data),
    )
    if not config.augment.on:
        return lambda first: map(spread, from_step(batches, first))

    @jax.jit
    def augmented(step: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        key = jax.random.fold_in(jax.random.key(settings.seed), step)
        return augment_frames(key, batch, config=config.augment, hop=hop, sizes=sizes)

    return lambda first: (
        augmented(step, spread(batch)) for step, batch in enumerate(from_step(batches, first), first)
    )
