"""A whole run: recordings and labels in, a teacher, its students and a table out."""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from qkd_jax.config import Config, DataConfig, InputError, StudentConfig, TeacherConfig, from_json, to_json
from qkd_jax.data.batches import train_batches
from qkd_jax.data.clips import Clip
from qkd_jax.data.demo import make_demo
from qkd_jax.data.features import Dataset, load_features, mean_and_std
from qkd_jax.data.manifest import read_manifest
from qkd_jax.distill.losses import distillation_loss, positive_weights, weighted_bce
from qkd_jax.distill.teacher import read_logits, write_logits
from qkd_jax.evaluation.cost import model_cost
from qkd_jax.evaluation.metrics import clip_metrics
from qkd_jax.evaluation.plots import plot_curves
from qkd_jax.evaluation.scores import clip_logits, make_predict
from qkd_jax.evaluation.table import print_table
from qkd_jax.models.build import build_model
from qkd_jax.train import checkpoint
from qkd_jax.train.loop import fit
from qkd_jax.train.state import TrainState, init_state, make_optimizer
from qkd_jax.train.step import make_train_step

TEACHER = "teacher"


def train(config: Config) -> Path:
    """Run `config`, or go on with it where it stopped; returns the run's folder.

    The teacher trains on the labels (eq. 1); its logits on the unaugmented training clips are
    kept with the run; each student trains on them (eq. 2) or on the labels alone.  At the end
    every model's best state is scored on the test split.  Raises InputError.
    """
    folder = Path(config.runs) / config.name
    config, clips = _open_run(config, folder)
    data = {split: _load(config, clips, split) for split in ("train", "valid")}
    norm = mean_and_std(data["train"].features)

    _fit(config, TEACHER, folder, data, norm, None)
    logits = None
    if any(student.distill for student in config.students.values()):
        logits = _teacher_logits(config, folder, data["train"])
    for name, student in config.students.items():
        _fit(config, name, folder, data, norm, logits if student.distill else None)
    evaluate_run(folder)
    return folder


def evaluate_run(folder: Path, only: str | None = None, data: DataConfig | None = None, split: str = "test") -> dict:
    """Score the best state of each model of the run, or of `only` one, on `split`; print and keep it.

    `data` is by default the run's own; its events and clip length are always the run's.
    The figures go to results.json (results-SPLIT.json for other splits), the logits of each
    model to its folder.  Figures on other `data` are printed, not kept.  Raises InputError.
    """
    config = load_run(folder)
    own = data is None or data == config.data
    if not own:
        fixed = {"events": config.data.events, "clip_seconds": config.data.clip_seconds}
        config = dataclasses.replace(config, data=dataclasses.replace(data, **fixed))
    names = [TEACHER, *config.students]
    if only is not None and only not in names:
        raise InputError(f"{folder}: no model {only!r}; there are: {', '.join(names)}")
    dataset = _load(config, _clips(config), split)

    models = {}
    curves = {}
    for name in names if only is None else [only]:
        model, like = _model(config, name), _abstract_state(config, name)
        variables = checkpoint.best_model(folder / name / "checkpoints", like)
        logits = clip_logits(make_predict(model), variables, dataset, config.frames, config.train.batch_size)
        metrics = _metrics(dataset, logits)
        quant = None if name == TEACHER else config.students[name].quant
        models[name] = {"metrics": metrics} | model_cost(model, variables, (config.frames, config.features.n_mels), quant)
        curves[name] = logits
        if own:
            write_logits(folder / name / f"logits-{split}.npz", dataset.names, dataset.events, logits)
    results = {"split": split, "clips": len(dataset.names), "models": models}
    if own and only is None:
        stem = "results" if split == "test" else f"results-{split}"
        (folder / f"{stem}.json").write_text(json.dumps(results, indent=2) + "\n")
        plot_curves(folder / f"{stem}.png", dataset.targets, curves, dataset.events)
    print_table(results)
    return results


def load_run(folder: Path) -> Config:
    """The resolved settings of the run in `folder`; raises InputError if it holds none."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: expected a run with a config.json, found none")
    return from_json(Config, path.read_text(), str(path))


def _open_run(config: Config, folder: Path) -> tuple[Config, list[Clip]]:
    """Resolve root and events, and write them down, or check them against what is there."""
    if config.data.source == "demo":
        root = config.data.root or str(folder / "data")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=root))
        make_demo(config.data, config.features.sample_rate)
    clips = _clips(config)
    events = config.data.events or tuple(sorted(set().union(*(clip.labels for clip in clips))))
    if not events:
        raise InputError(f"{config.data.root}/{config.data.manifest}: expected labels, found none")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, events=events))
    path = folder / "config.json"
    if path.is_file():
        _check_same(config, load_run(folder), path)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(to_json(config) + "\n")
    return config, clips


def _check_same(new: Config, old: Config, path: Path) -> None:
    def leaves(config: Config) -> dict[str, str]:
        tree = json.loads(to_json(config))
        return {jax.tree_util.keystr(key, simple=True, separator="."): str(value) for key, value in jax.tree.leaves_with_path(tree)}

    before, after = leaves(old), leaves(new)
    changed = [key for key in before | after if before.get(key) != after.get(key)]
    if changed:
        key = changed[0]
        raise InputError(
            f"{path}: this run has {key} = {before.get(key)}, now it is {after.get(key)}; "
            "give another --name, or delete the folder to begin anew"
        )


def _clips(config: Config) -> list[Clip]:
    return read_manifest(config.data)


def _load(config: Config, clips: list[Clip], split: str) -> Dataset:
    chosen = [clip for clip in clips if clip.split == split]
    if not chosen:
        raise InputError(f"{config.data.root}/{config.data.manifest}: expected clips of split {split!r}, found none")
    for event in config.data.events:
        positives = sum(event in clip.labels for clip in chosen)
        if not 0 < positives < len(chosen):
            raise InputError(
                f"{config.data.root}/{config.data.manifest}: event {event!r}: expected positive and negative clips "
                f"in split {split!r}, found {positives} positive of {len(chosen)}"
            )
    return load_features(chosen, config.data.events, config.features, config.frames)


def _model_config(config: Config, name: str) -> TeacherConfig | StudentConfig:
    return config.teacher if name == TEACHER else config.students[name]


def _model(config: Config, name: str) -> nn.Module:
    return build_model(_model_config(config, name), len(config.data.events))


def _new_state(config: Config, name: str, norm: tuple[np.ndarray, np.ndarray]) -> TrainState:
    shape = (config.frames, config.features.n_mels)
    return init_state(_model(config, name), make_optimizer(config.train), shape, norm, config.train.seed)


def _abstract_state(config: Config, name: str) -> TrainState:
    zeros = np.zeros(config.features.n_mels, np.float32)
    return jax.eval_shape(partial(_new_state, config, name, (zeros, zeros)))


def _fit(
    config: Config,
    name: str,
    folder: Path,
    data: dict[str, Dataset],
    norm: tuple[np.ndarray, np.ndarray],
    teacher_logits: np.ndarray | None,
) -> None:
    settings, train_data = config.train, data["train"]
    model = _model(config, name)
    predict = make_predict(model)

    def validate(variables: Any) -> dict[str, float]:
        logits = clip_logits(predict, variables, data["valid"], config.frames, settings.batch_size)
        return _metrics(data["valid"], logits)["average"]

    epoch_steps = len(train_data.names) // settings.batch_size
    if not epoch_steps:
        raise InputError(
            f"train.batch_size: expected at most the {len(train_data.names)} training clips, got {settings.batch_size}"
        )
    fit(
        make_train_step(model, make_optimizer(settings), _loss(config, train_data, teacher_logits is not None)),
        _new_state(config, name, norm),
        train_batches(
            train_data, teacher_logits, frames=config.frames, batch_size=settings.batch_size, seed=settings.seed
        ),
        validate,
        folder=folder / name,
        epochs=settings.teacher_epochs if name == TEACHER else settings.student_epochs,
        epoch_steps=epoch_steps,
    )


def _loss(config: Config, data: Dataset, distill: bool) -> Callable[[jax.Array, Any], jax.Array]:
    settings = config.distill
    weight = positive_weights(data.targets, settings.positive_weight)
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


def _metrics(data: Dataset, logits: np.ndarray) -> dict[str, dict[str, float]]:
    return clip_metrics(data.targets, logits, data.events)


def _teacher_logits(config: Config, folder: Path, data: Dataset) -> np.ndarray:
    """The best teacher's logits on the training clips, computed once."""
    path = folder / TEACHER / "logits-train.npz"
    if not path.is_file():
        variables = checkpoint.best_model(folder / TEACHER / "checkpoints", _abstract_state(config, TEACHER))
        predict = make_predict(_model(config, TEACHER))
        logits = clip_logits(predict, variables, data, config.frames, config.train.batch_size)
        write_logits(path, data.names, data.events, logits)
    return read_logits(path, data.names, data.events)
