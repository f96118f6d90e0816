"""Targets from teachers: clip logits, step posteriors and embeddings, computed once and stored in the run."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from qkd_jax.config import HeadConfig, StepNetwork, is_file, step_clock
from qkd_jax.data.arrays import read_npy, read_npz
from qkd_jax.data.batches import EmbeddingTargets, StepTargets, tiled
from qkd_jax.data.cache import read_entry
from qkd_jax.data.clips import Clip
from qkd_jax.data.dataset import Dataset
from qkd_jax.data.features import mean_and_std
from qkd_jax.data.logits import StepLogits, read_logits, read_step_logits, write_logits, write_step_logits
from qkd_jax.distill.embeddings import tagger_embeddings
from qkd_jax.distill.objectives import fuse, fusion_weights, step_of_frame
from qkd_jax.distill.tagger import tagger_logits
from qkd_jax.errors import InputError, printable
from qkd_jax.evaluation.metrics import average_precision
from qkd_jax.evaluation.prediction import clip_logits, make_predict, make_predict_steps, step_logits
from qkd_jax.run_folder.run import Run
from qkd_jax.system.devices import lacking
from qkd_jax.system.files import whole_file
from qkd_jax.system.progress import track
from qkd_jax.training.heads import cross_fitted, head_logits, on_steps, read_by

_BATCH = 16
_MIN_STD = 0.01  # relative to the largest standard deviation


def cache_file_logits(run: Run, train: Dataset) -> None:
    """Compute and store the logits of all teachers from files; raises InputError for unusable ones."""
    for model in run.config.models.values():
        for teacher in filter(is_file, model.teachers):
            _file_logits(run, teacher, train)


def teacher_logits(run: Run, name: str, train: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the logits of model `name`'s teachers on the training clips, float32 [clips, events].

    An event's mean is over the teachers that cover it.  The second array, bool [events], is False for events
    that none covers, whose logits are 0.
    """
    logits = np.stack(
        [
            (_file_logits if is_file(teacher) else _model_logits)(run, teacher, train)
            for teacher in run.config.models[name].teachers
        ]
    )
    covers = ~np.isnan(logits).any(axis=1, keepdims=True)  # [teachers, 1, events]
    total = np.where(covers, logits, 0).sum(axis=0) / np.maximum(covers.sum(axis=0), 1)
    return total.astype(np.float32), covers.any(axis=(0, 1))


def covered_events(run: Run, name: str, train: Dataset) -> np.ndarray:
    """The events that some teacher of model `name` covers, bool [events]; a model of the run covers all."""
    if not all(map(is_file, run.config.models[name].teachers)):
        return np.ones(len(train.events), bool)
    return teacher_logits(run, name, train)[1]


def _file_logits(run: Run, teacher: str, train: Dataset) -> np.ndarray:
    """Logits of a tagger or a file for the training clips, float32 [clips, events]; NaN for events it lacks.

    They are stored in the run, so that later changes of the file don't affect it.
    """
    path, file = run.teacher_file(teacher), Path(teacher)
    if lacking(path):
        if file.suffix == ".toml":
            logits = tagger_logits(file, train.clips, train.events, run.cache, run.config.data.channel)
        else:
            logits = read_logits(file, train.names, train.events)
        unknown = [event for event, column in zip(train.events, logits.T) if np.isnan(column).any()]
        but = f", except {printable(', '.join(unknown))}" if unknown else ""
        print(f"{file.name}: logits of {len(train.names)} training clips for all events{but}", flush=True)
        with whole_file(path) as opened:
            np.save(opened, logits)
    what = f"logits of {file.name} (delete the file to compute them again)"
    logits = read_npy(path, what, "f", 2)
    if logits.shape != train.targets.shape or np.isinf(logits).any():
        raise InputError(f"{path}: expected {what}: found an array {logits.shape}")
    return logits


def _model_logits(run: Run, teacher: str, train: Dataset) -> np.ndarray:
    """Logits of the best state of a model of the run on the unaugmented training clips, computed once."""
    # Not logits-train.npz, which the eval command may write during training.
    path = run.model_folder(teacher) / "teaching.npz"
    if lacking(path):
        if teacher in run.config.heads:
            logits = np.stack([each.max(axis=0) for each in cross_fitted(run, teacher, train)])
        else:
            predict, variables = make_predict(run.model(teacher)), run.best_variables(teacher)
            logits = clip_logits(predict, variables, train, run.config.frames, run.config.recipe.batch_size)
        write_logits(path, train.names, train.events, logits)
    return read_logits(path, train.names, train.events)


def teaching_file(run: Run, name: str, data: dict[str, Dataset]) -> Path:
    """The file with the logits of model `name` on the training clips, a teacher for models of other runs."""
    if run.config.timed:
        _step_logits(run, name, data)
    else:
        _model_logits(run, name, data["train"])
    return run.model_folder(name) / "teaching.npz"


def check_step_teachers(run: Run, name: str, train: Dataset) -> None:
    """Raise InputError unless files of logits for model `name` have the steps of this run's clips."""
    config = run.config
    for teacher in filter(is_file, config.models[name].teachers):
        logits = read_step_logits(Path(teacher), train.names, train.events)
        expected = (config.frames - logits.receptive_field) // logits.stride + 1
        if (steps := logits.steps.shape[1]) != expected:
            raise InputError(
                f"{teacher}: expected {expected} steps of {config.frames} frames, found {steps}: the logits "
                "belong to other features or another clip length"
            )


def fused_posteriors(run: Run, name: str, data: dict[str, Dataset]) -> StepTargets | None:
    """The fused posteriors of model `name`'s teachers on the training clips; None without teachers.

    They have the teachers' steps, or those of the first one if these differ.
    """
    config, objective = run.config.model(name), run.objective(name)
    if not config.teachers:
        return None
    teachers = [_step_logits(run, teacher, data) for teacher in config.teachers]
    weights = fusion_weights(objective.fusion, np.stack([each.precision for each in teachers]))
    frames = [
        step_of_frame(each.receptive_field, each.stride, steps=each.steps.shape[1], frames=run.config.frames)
        for each in teachers
    ]
    count = teachers[0].steps.shape[1]
    middle = [int(np.median(np.flatnonzero(frames[0] == step))) for step in range(count)]
    at_steps = [each.steps[:, of_frame[middle]] for each, of_frame in zip(teachers, frames)]
    steps, clip = (
        fuse(np.stack(logits).astype(np.float32), weights, objective.temperature)
        for logits in (at_steps, [each.clip for each in teachers])
    )
    return StepTargets(steps, clip, frames[0])


def _step_logits(run: Run, teacher: str, data: dict[str, Dataset]) -> StepLogits:
    """The logits of a teacher on the training clips: read from its file, or computed once and stored."""
    train, config = data["train"], run.config
    if is_file(teacher):
        return read_step_logits(Path(teacher), train.names, train.events)
    path = run.model_folder(teacher) / "teaching.npz"
    if lacking(path):
        head = isinstance(config.models[teacher].network, HeadConfig)
        kept = (_head_step_logits if head else _network_step_logits)(run, teacher, data)
        write_step_logits(path, train.names, train.events, kept)
    return read_step_logits(path, train.names, train.events)


def _network_step_logits(run: Run, teacher: str, data: dict[str, Dataset]) -> StepLogits:
    """The logits of a network's best state; its precision is that of clips in the validation split."""
    config, network = run.config, _network(run, teacher)
    predict, variables = make_predict_steps(run.model(teacher)), run.best_variables(teacher)
    clip, _ = step_logits(predict, variables, data["valid"], config.frames, network)
    precision = average_precision(data["valid"].targets, clip)
    clip, steps = step_logits(predict, variables, data["train"], config.frames, network)
    if len({len(logits) for logits in steps}) > 1:
        raise InputError(
            "--data.clip-seconds: expected the length of the longest training recording or more, "
            f"got {config.data.clip_seconds:g}"
        )
    return StepLogits(clip, np.stack(steps), precision, network.receptive_field, network.stride)


def _head_step_logits(run: Run, teacher: str, data: dict[str, Dataset]) -> StepLogits:
    """Those of a head, cross-fitted; the steps of clips shorter than the others are repeated."""
    network = _network(run, teacher)
    valid, train = (read_by(run, teacher, data[split]) for split in ("valid", "train"))
    precision = average_precision(
        valid.targets, head_logits(run, teacher, valid, run.best_variables(teacher))
    )
    windows = cross_fitted(run, teacher, data["train"])
    frames = run.config.frames
    steps = np.stack([on_steps(run, network, train, clip, each, frames) for clip, each in enumerate(windows)])
    clip = np.stack([each.max(axis=0) for each in windows])
    return StepLogits(clip, steps, precision, network.receptive_field, network.stride)


def _network(run: Run, name: str) -> StepNetwork:
    network: Any = run.config.models[name].network
    return network


def embedding_targets(run: Run, name: str, clips: int) -> EmbeddingTargets | None:
    """The embeddings that `write_embeddings` wrote for model `name`; None if it has no source."""
    if run.objective(name).embeddings is None:
        return None
    path, what = run.embeddings_file(name), f"embeddings of {clips} clips"
    rows, row_of_step, size = read_npz(path, what, rows=("f", 3), row_of_step=("iu", 1), size=("iu", 0))
    network: Any = run.config.models[name].network
    steps = network.steps(run.config.frames)
    if (
        (len(rows), rows.shape[2], len(row_of_step)) != (clips, size, steps)
        or not 0 <= row_of_step.min() <= row_of_step.max() < rows.shape[1]
        or not np.isfinite(rows).all()
    ):
        raise InputError(f"{path}: expected {what}, {steps} steps, size {size}, found others: {rows.shape}")
    return EmbeddingTargets(rows, row_of_step)


def write_embeddings(run: Run, name: str, train: Dataset) -> None:
    """Write the target embeddings of model `name` on the training clips (EEFD), if it has a source of them.

    `rows` float16 [clips, rows, size], and for each of the model's steps the nearest row.  Each dimension is
    standardized, except those that hardly vary: otherwise distances would be meaningless, since YAMNet's
    embeddings are mostly near 0, and a layer-norm's output soon is too.  Raises InputError if a tagger
    can't be used.
    """
    source, path = run.objective(name).embeddings, run.embeddings_file(name)
    if source is None or not lacking(path):
        return
    network: Any = run.config.models[name].network
    steps = np.arange(network.steps(run.config.frames))
    if is_file(source):
        entries, hop = tagger_embeddings(Path(source), train.clips, run.cache, run.config.data.channel)
        embeddings = [_of_part(clip, read_entry(entry), hop) for clip, entry in zip(train.clips, entries)]
        most = max(map(len, embeddings))
        rows = np.stack([np.resize(each, (most, each.shape[1])) for each in embeddings])
        first, step = step_clock(run.config.features, network)
        row_of_step = np.clip(np.rint((first + step * steps) / hop).astype(int), 0, most - 1)
    else:
        rows, row_of_step = _convolution_outputs(run, source, train), steps
    with whole_file(path) as file:
        np.savez(file, rows=_standardized(rows), row_of_step=row_of_step, size=rows.shape[-1])


def _of_part(clip: Clip, rows: np.ndarray, hop: float) -> np.ndarray:
    """The rows of a recording's embeddings, one every `hop` seconds, that belong to the clip."""
    if clip.part is None:
        return rows
    first, last = (round(seconds / hop) for seconds in clip.part)
    return rows[min(first, len(rows) - 1) : last + 1]


def _standardized(rows: np.ndarray) -> np.ndarray:
    """`rows` [clips, rows, size] with mean 0 and variance 1 per dimension, except those that hardly vary."""
    mean, std = mean_and_std(rows)
    return ((rows - mean) / np.maximum(std, _MIN_STD * std.max())).astype(np.float16)


def _convolution_outputs(run: Run, name: str, train: Dataset) -> np.ndarray:
    """The outputs of model `name`'s convolutions on the training clips, [clips, steps, size]."""
    model, variables, frames = run.model(name), run.best_variables(name), run.config.frames

    @jax.jit
    def front(variables: Any, features: jax.Array) -> jax.Array:
        _, captured = model.apply(
            variables,
            features,
            capture_intermediates=lambda module, _: module.name == "front",
            mutable=["intermediates"],
        )
        return captured["intermediates"]["front"]["__call__"][0]

    rows, starts = [], range(0, len(train.names), _BATCH)
    for start in track(starts, len(starts), "embeddings"):
        some = [
            tiled(train.features[clip], frames) for clip in range(len(train.names))[start : start + _BATCH]
        ]
        batch = np.zeros((_BATCH, *some[0].shape), np.float32)
        batch[: len(some)] = some
        rows.append(np.asarray(front(variables, batch))[: len(some)])
    return np.concatenate(rows)
