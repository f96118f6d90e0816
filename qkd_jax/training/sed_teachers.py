"""What the models of a run of sound event detection learn from those before them."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from qkd_jax.config import RunConfig
from qkd_jax.data.arrays import read_npz
from qkd_jax.data.batches import tiled
from qkd_jax.data.cache import read_entry
from qkd_jax.data.features import mean_and_std
from qkd_jax.data.logits import StepLogits, read_step_logits, write_step_logits
from qkd_jax.data.timed import SedDataset
from qkd_jax.detector.stream import clock
from qkd_jax.distill.embeddings import tagger_embeddings
from qkd_jax.distill.timed_objectives import fuse, fusion_weights, step_of_frames
from qkd_jax.errors import InputError
from qkd_jax.evaluation.metrics import average_precision
from qkd_jax.evaluation.prediction import make_detect, step_logits
from qkd_jax.run_folder.folder import Run
from qkd_jax.system.devices import lacking
from qkd_jax.system.files import whole_file
from qkd_jax.system.progress import track

_BATCH = 16
_LEAST = 0.01  # of the largest standard deviation


def taught(run: Run[RunConfig], name: str, data: dict[str, SedDataset]) -> dict[str, Any]:
    """What `sed_batches` takes: the fused teachers of model `name`, and the embeddings that guide it."""
    config = run.config.models[name]
    found: dict[str, Any] = {}
    if config.embeddings is not None:
        found |= _guide(run, name, len(data["train"].names))
    if not config.teachers:
        return found
    all_said = [said(run, teacher, data) for teacher in config.teachers]
    first = all_said[0]
    weights = fusion_weights(config.fusion, np.stack([each.precision for each in all_said]))
    frames, clip = (
        fuse(
            np.stack([getattr(each, part) for each in all_said]).astype(np.float32),
            weights,
            config.temperature,
        )
        for part in ("frames", "clip")
    )
    return found | {
        "teacher": frames,
        "teacher_clip": clip,
        "step_of_frames": step_of_frames(first.span, frames.shape[1], run.config.frames),
    }


def _guide(run: Run[RunConfig], name: str, clips: int) -> dict[str, Any]:
    """The embeddings that `keep_embeddings` wrote down for model `name`."""
    path, what = run.embeddings(name), f"embeddings of {clips} clips"
    rows, row_of_step, size = read_npz(path, what, rows=("f", 3), row_of_step=("iu", 1), size=("iu", 0))
    steps = run.config.networks[name].steps(run.config.frames)
    if (
        (len(rows), rows.shape[2], len(row_of_step)) != (clips, size, steps)
        or not 0 <= row_of_step.min() <= row_of_step.max() < rows.shape[1]
        or not np.isfinite(rows).all()
    ):
        raise InputError(f"{path}: expected {what}, {steps} steps, size {size}, found others: {rows.shape}")
    return {"embeddings": rows, "row_of_step": row_of_step}


def check_teachers(config: RunConfig, name: str, train: SedDataset) -> None:
    """Raise InputError if those that teach model `name` don't speak of the steps of one grid."""
    spans = set()
    for teacher in config.models[name].teachers:
        if not teacher.endswith(".npz"):
            spans.add(config.networks[teacher].span)
            continue
        found = read_step_logits(Path(teacher), train.names, train.events)
        (read, hop), steps = found.span, found.frames.shape[1]
        spans.add(found.span)
        if steps != (expected := (config.frames - read) // hop + 1):
            raise InputError(
                f"{teacher}: expected {expected} steps of {config.frames} frames, found {steps}: of "
                "other features, or another clip length"
            )
    if len(spans) > 1:
        raise InputError(f"models.{name}.teachers: expected teachers of one step, got spans {sorted(spans)}")


def said(run: Run[RunConfig], teacher: str, data: dict[str, SedDataset]) -> StepLogits:
    """The logits of the model `teacher` of the run, kept there, or of a file, on the training clips."""
    train = data["train"]
    if teacher.endswith(".npz"):
        return read_step_logits(Path(teacher), train.names, train.events)
    path = run.folder / teacher / "teaching.npz"
    if lacking(path):
        network, variables = run.config.networks[teacher], run.best_variables(teacher)
        detect = make_detect(run.model(teacher))
        clip, _ = step_logits(detect, variables, data["valid"], run.config.frames, network)
        precision = average_precision(data["valid"].targets, clip)
        clip, frames = step_logits(detect, variables, train, run.config.frames, network)
        if len({len(logits) for logits in frames}) > 1:
            seconds = run.config.data.clip_seconds
            raise InputError(
                f"data.clip_seconds: expected no longer recordings where models teach, got {seconds:g}"
            )
        kept = StepLogits(clip, np.stack(frames), precision, network.span)
        write_step_logits(path, train.names, train.events, kept)
    return read_step_logits(path, train.names, train.events)


def keep_embeddings(run: Run[RunConfig], name: str, data: SedDataset) -> None:
    """Write down the embeddings that guide model `name` on the training clips (EEFD), if any do.

    `rows` float16 [clips, rows, size], and which of them stands for each of the model's steps, the nearest.
    Each of the dimensions has mean 0 and variance 1, but for those that hardly vary, so that a distance
    tells them apart: YAMNet's own are mostly near 0, and so is a layer-norm's output soon.
    Raises InputError if a tagger can't be used.
    """
    source, path = run.config.models[name].embeddings, run.embeddings(name)
    if source is None or not lacking(path):
        return
    network, frames = run.config.networks[name], run.config.frames
    steps = np.arange(network.steps(frames))
    if source.endswith(".toml"):
        clips = [clip for clip in run.clips if clip.split == "train"]
        entries, hop = tagger_embeddings(Path(source), clips, run.cache)
        found = [read_entry(entry) for entry in entries]
        most = max(map(len, found))
        rows = np.stack([np.resize(each, (most, each.shape[1])) for each in found])
        first, step = clock(run.config.features, network)
        row_of_step = np.clip(np.rint((first + step * steps) / hop).astype(int), 0, most - 1)
    else:
        rows, row_of_step = _inner(run, source, data), steps
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as file:
        np.savez(file, rows=_standardised(rows), row_of_step=row_of_step, size=rows.shape[-1])


def _standardised(rows: np.ndarray) -> np.ndarray:
    """`rows` [clips, rows, size] less each dimension's mean, by its spread; what hardly varies is near 0."""
    mean, std = mean_and_std(rows)
    return ((rows - mean) / np.maximum(std, _LEAST * std.max())).astype(np.float16)


def _inner(run: Run[RunConfig], name: str, data: SedDataset) -> np.ndarray:
    """What the convolutions of model `name` make of the training clips, [clips, steps, size]."""
    model, variables, frames = run.model(name), run.best_variables(name), run.config.frames

    @jax.jit
    def inner(variables: Any, features: jax.Array) -> jax.Array:
        _, found = model.apply(
            variables,
            features,
            capture_intermediates=lambda module, _: module.name == "front",
            mutable=["intermediates"],
        )
        return found["intermediates"]["front"]["__call__"][0]

    rows = []
    for start in track(range(0, len(data.names), _BATCH), -(-len(data.names) // _BATCH), "embeddings"):
        some = [
            tiled(data.features[clip], frames) for clip in range(start, min(start + _BATCH, len(data.names)))
        ]
        batch = np.zeros((_BATCH, *some[0].shape), np.float32)
        batch[: len(some)] = some
        rows.append(np.asarray(inner(variables, batch))[: len(some)])
    return np.concatenate(rows)
