"""The driver: load the data, then train the models of a run in order."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from qkd_jax.config import DenseNetConfig, ResNetConfig, RunConfig, is_integer
from qkd_jax.data.dataset import Dataset
from qkd_jax.errors import InputError
from qkd_jax.evaluation.cost import multiply_adds, training_rate
from qkd_jax.models.lstm_integer import calibrate
from qkd_jax.run_folder.folder import start_of
from qkd_jax.run_folder.run import Run
from qkd_jax.run_folder.state import TrainState, started_from
from qkd_jax.system.devices import check_batch, stop_all_if_asked
from qkd_jax.system.progress import duration
from qkd_jax.training import clips, events
from qkd_jax.training.heads import train_head
from qkd_jax.training.loop import fit

_CALIBRATION_BATCHES = 8


def recipe_of(config: RunConfig) -> Any:
    """The recipe of a run: the module of check_clips, load, batches, train_step and validate."""
    return events if config.timed else clips


def check_config(config: RunConfig) -> None:
    """Raise InputError if there is no model, none for `data.unlabelled`, or no batch for all devices."""
    if not config.models:
        raise InputError("models: expected at least one, got none")
    students = [name for name, model in config.models.items() if model.teachers]
    if config.data.unlabelled and not config.timed and not students:
        raise InputError("--data.unlabelled: expected a model with teachers, since they label, found none")
    fields = "strong, --recipe.weak and --recipe.unlabelled together" if config.timed else "batch-size"
    check_batch(f"--recipe.{fields}", config.recipe.batch_size)


def train_models(run: Run) -> None:
    """Train the models of `run` in order, resuming where it stopped.

    Raises InputError, and KeyboardInterrupt when asked to stop.
    """
    recipe = recipe_of(run.config)
    for name in run.names:
        start_of(run, name)  # raises now, rather than after hours of training
    data = recipe.load(run)
    train = data["train"]
    # Clip models without teachers must not depend on unlabelled clips.
    clips_seen = range(len(train.names)) if run.config.timed else train.labelled
    norm = run.norm(train.features[clip] for clip in clips_seen)
    for name in run.names:
        stop_all_if_asked()
        if name in run.config.heads:
            train_head(run, name, data)
        else:
            _train_model(run, name, recipe, data, norm)
    stop_all_if_asked()


def _train_model(
    run: Run, name: str, recipe: Any, data: dict[str, Dataset], norm: tuple[np.ndarray, np.ndarray]
) -> None:
    epochs, network = run.config.model(name).epochs, run.config.models[name].network
    assert epochs is not None
    epoch_steps, batches_from = recipe.batches(run, name, data)
    if epochs * epoch_steps > (most := np.iinfo(np.int32).max):
        raise InputError(
            f"--models.{name}.epochs: expected at most {most // epoch_steps}, since an epoch has "
            f"{epoch_steps} updates, got {epochs}"
        )
    state = first_state(run, name, norm, batches_from)
    size, slow = run.config.recipe.batch_size, isinstance(network, DenseNetConfig | ResNetConfig)

    def announce(updates: int) -> None:
        if not slow:
            return
        macs = multiply_adds(run.model(name).apply, state.model, np.zeros((1, *run.shape), np.float32))
        time = duration(3 * updates * size * macs / training_rate())
        print(
            f"{name}: {updates} updates of {size} clips, about {time} here, with a minute to compile; a head "
            "on a pretrained tagger takes seconds instead (--teacher FILE.toml)",
            flush=True,
        )

    fit(
        recipe.train_step(run, name, data, epochs * epoch_steps),
        state,
        batches_from,
        recipe.validate(run, name, data),
        folder=run.model_folder(name),
        epochs=epochs,
        epoch_steps=epoch_steps,
        patience=run.config.recipe.patience,
        keep_last=run.config.final,
        announce=announce,
    )


def first_state(
    run: Run, name: str, norm: tuple[np.ndarray, np.ndarray], batches_from: Callable[[int], Iterable[Any]]
) -> TrainState:
    """A new state, or another model's best; for the integer-only scheme, with calibrated exponents."""
    state = run.new_state(name, norm)
    if (start := start_of(run, name)) is None:
        return state
    (other, model) = start
    network: Any = run.config.models[name].network
    state = started_from(state, other.best_variables(model))
    if is_integer(network):
        batches = itertools.islice(batches_from(0), _CALIBRATION_BATCHES)
        exponents = calibrate(network, state.model, (batch["features"] for batch in batches))
        state = dataclasses.replace(state, variables=state.variables | {"exponents": exponents})
    return state
