"""Views of a run's training recordings."""

from pathlib import Path
from typing import Any

import numpy as np

from qkd_jax.data.clips import Clip
from qkd_jax.data.dataset import Dataset
from qkd_jax.data.views import draw, make_views
from qkd_jax.distill.tagger import read_tagger
from qkd_jax.run_folder.run import Run
from qkd_jax.training.heads import folds_of, read_by

_FLAC = 0.6  # of the bytes of 16-bit samples, on the standard set
_SAMPLED = 100  # clips


def views_of(run: Run, train: Dataset) -> list[Clip]:
    """Views of the labelled clips of `train`, at the highest rate that the features or a tagger need.

    Unlabelled clips are mixed into them too.
    """
    config, seed = run.config, run.config.recipe.seed
    taggers = {path for network in config.heads.values() for path in network.taggers}
    rate = max([config.features.sample_rate, *(read_tagger(Path(path)).sample_rate for path in taggers)])
    clips = [train.clips[clip] for clip in train.labelled]
    unlabelled = [clip for clip in train.clips if not clip.labelled]
    count = config.augment.views_per_clip(len(clips))
    return make_views(
        draw(clips, folds_of(train, seed).tolist(), count, seed, unlabelled),
        run.cache,
        seconds=config.data.clip_seconds,
        rate=rate,
        channel=config.data.channel,
        each=_bytes(run, train, rate),
    )


def _bytes(run: Run, train: Dataset, rate: int) -> float:
    """The bytes that a view takes: of FLAC, features and outputs of taggers, by those of some clips."""
    config, clips = run.config, train.labelled[:_SAMPLED].tolist()
    frames = np.mean([min(len(train.features[clip]), config.frames) for clip in clips])
    seconds = frames * config.features.hop_length / config.features.sample_rate
    inputs: list[Any] = [read_by(run, name, train).features for name in run.config.heads]
    taggers = {tagger.identity: tagger for each in inputs for tagger in each.taggers}.values()
    outputs = np.mean([sum(tagger.outputs(clip).nbytes for tagger in taggers) for clip in clips])
    return float(_FLAC * 2 * rate * seconds + 4 * config.features.n_mels * frames + outputs)
