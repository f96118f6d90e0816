"""Score an exported detector on recordings, in the runtime that its file is for."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qkd_jax.config import AnyData, FeatureConfig, ManifestData, RunConfig
from qkd_jax.data.clip_list import clips_to_score
from qkd_jax.data.clips import Clip, targets
from qkd_jax.data.dataset import check_split, load_split
from qkd_jax.data.samples import clip_samples
from qkd_jax.detector.file import load
from qkd_jax.errors import InputError
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.evaluation.prediction import clip_logits
from qkd_jax.evaluation.table import print_table
from qkd_jax.run_folder.folder import load_run
from qkd_jax.run_folder.recordings import check_recordings, same_but_moved
from qkd_jax.run_folder.run import Run
from qkd_jax.runtimes import Exported, open_clip
from qkd_jax.runtimes.jax import to_jax
from qkd_jax.system.devices import computing
from qkd_jax.system.progress import track

_BATCH = 32


def run_around(path: Path) -> Run | None:
    """The run in the folder of `path`, if any."""
    folder = path.absolute().parent
    return load_run(folder) if (folder / "config.json").is_file() else None


@computing()
def score_file(
    path: Path, *, run: Run | None = None, data: AnyData | None = None, split: str = "test"
) -> dict[str, Any]:
    """Score the detector in the file at `path` (`runtimes.open_clip`) on a split; print and return the table.

    The recordings are those of `data`, by default of the `run` around the file.  Raises InputError.
    """
    exported = open_clip(path)
    if run and data and (moved := same_but_moved(run, data, split)):
        run, data = moved, None
    if run and (data is None or data == run.config.data):
        check_recordings(run, [split])
        config, clips, cache = run.config, run.clips, run.cache
    else:
        own: dict[str, Any] = {"events": exported.events, "clip_seconds": exported.clip_seconds}
        data = data or ManifestData()
        for field, value in own.items():
            if getattr(data, field) not in (value, getattr(ManifestData(), field)):
                flag = field.replace("_", "-")
                raise InputError(
                    f"--data.{flag}: expected {value}, as in the detector, got {getattr(data, field)}"
                )
        config = RunConfig(features=exported.features, data=dataclasses.replace(data, **own))
        cache = run.cache if run else Path(config.runs) / ".features"
        clips = clips_to_score(config.data, config.features, cache, split, run.clips if run else ())
    for field, ours in zip(exported._fields, (config.data.events, config.features, config.data.clip_seconds)):
        if ours != (found := getattr(exported, field)):
            raise InputError(
                f"{path}: expected the events, features and clip length of run {path.absolute().parent}, "
                f"found other {field}: {_other(found, ours)}"
            )
    if path.suffix == ".safetensors":  # JAX is faster than NumPy, with the same codes
        detector = load(path)
        dataset = load_split(config, clips, split, cache)
        predict = jax.jit(lambda _, log_mel: to_jax(detector)(log_mel))
        logits, truth = clip_logits(predict, None, dataset, config.frames, _BATCH), dataset.targets
    else:
        check_split(config.data, clips, split)
        chosen = [clip for clip in clips if clip.split == split and clip.labelled]
        logits, truth = _logits(exported, chosen, config.data.channel), targets(chosen, exported.events)
    figures = {"metrics": evaluate(truth, logits, exported.events), "bytes": path.stat().st_size}
    results = {"split": split, "clips": len(truth), "models": {path.name: figures}}
    print_table(results)
    return results


def _other(found: Any, expected: Any) -> str:
    """A field of a detector as text; only the settings that differ for features."""
    if isinstance(found, FeatureConfig):
        values = dataclasses.asdict(found).items()
        return ", ".join(f"{name} {value}" for name, value in values if value != getattr(expected, name))
    return ", ".join(found) if isinstance(found, tuple) else f"{found:g} s"


def _logits(exported: Exported, clips: Sequence[Clip], channel: int | None) -> np.ndarray:
    """Logits [clips, events]: the maximum over windows, as for a run's models."""
    rate, logits = exported.features.sample_rate, []
    samples = round(exported.clip_seconds * rate)
    for clip in track(clips, len(clips), "scores"):
        pieces = _windows(clip_samples(clip, rate, channel), samples, exported.features)
        logits.append(np.max([exported.clip_logits(piece) for piece in pieces], axis=0))
    return np.array(logits)


def _windows(waveform: np.ndarray, samples: int, features: FeatureConfig) -> Iterator[np.ndarray]:
    """The samples of the windows at `data.batches.window_starts`.

    A shorter recording is cut to whole hops and tiled: only frames across a seam differ from the run's.
    """
    frames, hop = features.frames(samples), features.hop_length
    if len(waveform) < samples:
        yield np.resize(waveform[: max(features.frames(len(waveform)), 1) * hop], samples)
        return
    last = max(features.frames(len(waveform)) - frames, 0)
    for start in (*range(0, last, frames), last):
        yield np.resize(waveform[start * hop : start * hop + samples], samples)
