"""Scoring an exported detector on recordings, in the runtime that its file is for."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qkd_jax.audio.reading import read_audio
from qkd_jax.commands.evaluate import other_clips
from qkd_jax.config import DataConfig, FeatureConfig, RunConfig
from qkd_jax.data.clips import Clip, targets
from qkd_jax.data.dataset import check_split, load_split
from qkd_jax.detector import file as artefact
from qkd_jax.errors import InputError
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.evaluation.prediction import clip_logits
from qkd_jax.evaluation.table import print_table
from qkd_jax.run_folder.folder import Run, load_run
from qkd_jax.runtimes.exported import Exported, open_exported
from qkd_jax.runtimes.jax import to_jax
from qkd_jax.system.progress import track

_BATCH = 32


def run_around(path: Path) -> Run | None:
    """The run that the file at `path` lies in, RUN/STUDENT/FILE, if it does."""
    folder = path.absolute().parent.parent
    return load_run(folder) if (folder / "config.json").is_file() else None


def score_file(path: Path, run: Run | None, *, data: DataConfig, split: str) -> dict[str, Any]:
    """Score the detector in the file at `path` (`open_exported`) on a split; print and return the table.

    On the recordings of `data`; those of the `run` around it are in the splits that they are in there.
    Raises InputError.
    """
    exported = open_exported(path)
    if run and data == run.config.data:
        config, clips, cache = run.config, run.clips, run.cache
    else:
        own: dict[str, Any] = {"events": exported.events, "clip_seconds": exported.clip_seconds}
        for field, value in own.items():
            if getattr(data, field) not in (value, getattr(DataConfig(), field)):
                raise InputError(f"data.{field}: the detector has {value}, got {getattr(data, field)}")
        config = RunConfig(features=exported.features, data=dataclasses.replace(data, **own))
        cache = run.cache if run else Path(config.runs) / ".features"
        clips = other_clips(config, split, cache, run.clips if run else ())
    expected = config.data.events, config.features, config.data.clip_seconds
    if expected != exported[:3]:
        raise InputError(
            f"{path}: expected a detector of the run around it, {expected}, found {exported[:3]}"
        )
    if path.suffix == ".safetensors":  # NumPy would take long, for the same codes
        detector = artefact.load(path)
        dataset = load_split(config, clips, split, cache)
        predict = jax.jit(lambda _, log_mel: to_jax(detector)(log_mel))
        logits = clip_logits(predict, None, dataset, config.frames, _BATCH)
        truth = dataset.targets
    else:
        check_split(config.data, clips, split)
        chosen = [clip for clip in clips if clip.split == split and clip.labelled]
        logits, truth = _logits(exported, chosen), targets(chosen, exported.events)
    figures = {"metrics": evaluate(truth, logits, exported.events), "bytes": path.stat().st_size}
    results = {"split": split, "clips": len(truth), "models": {path.name: figures}}
    print_table(results)
    return results


def _logits(exported: Exported, clips: Sequence[Clip]) -> np.ndarray:
    """Logits [clips, events]: the maximum over windows, as a run's models are scored."""
    rate, logits = exported.features.sample_rate, []
    samples = round(exported.clip_seconds * rate)
    for clip in track(clips, len(clips), "scores"):
        pieces = _windows(read_audio(clip.path, rate), samples, exported.features)
        logits.append(np.max([exported.clip_logits(piece) for piece in pieces], axis=0))
    return np.array(logits)


def _windows(waveform: np.ndarray, samples: int, features: FeatureConfig) -> Iterator[np.ndarray]:
    """The samples of the windows at `data.batches.window_starts`.

    What is shorter is cut to whole hops and tiled, so that only frames across a seam are not the run's.
    """
    frames, hop = features.frames(samples), features.hop_length
    if len(waveform) < samples:
        yield np.resize(waveform[: max(features.frames(len(waveform)), 1) * hop], samples)
        return
    last = max(features.frames(len(waveform)) - frames, 0)
    for start in (*range(0, last, frames), last):
        yield np.resize(waveform[start * hop : start * hop + samples], samples)
