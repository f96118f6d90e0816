"""The clips of one split, ready for batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qkd_jax.config import DataConfig, RunConfig
from qkd_jax.data.clip_list import list_bad
from qkd_jax.data.clips import Clip, targets
from qkd_jax.data.features import CachedFeatures, cached_features
from qkd_jax.errors import InputError


@dataclass(frozen=True)
class Dataset:
    """Clips of one split: `features` float32 [frames, mels] each, `targets` float32 [clips, events]."""

    names: list[str]
    features: Sequence[np.ndarray]
    targets: np.ndarray
    events: tuple[str, ...]


def load_split(config: RunConfig | RunConfig, clips: Sequence[Clip], split: str, cache: Path) -> Dataset:
    """The features, from `cache` or computed, and the targets of the labelled clips of one split.

    Raises InputError if a recording can't be used, if there are none, or if an event has no
    positive or no negative clip.
    """
    chosen = [clip for clip in clips if clip.split == split and clip.labelled]
    entries, bad = cached_features(chosen, config.features, cache)
    if bad:
        raise InputError(*list_bad(bad, len(chosen)))
    check_split(config.data, clips, split)
    names, events = [clip.name for clip in chosen], config.data.events
    return Dataset(names, CachedFeatures(entries), targets(chosen, events), events)


def check_split(data: DataConfig, clips: Sequence[Clip], split: str) -> None:
    """Raise InputError if the clips of `split` can't serve to learn or to measure each of `data.events`.

    Unlabelled clips don't count.
    """
    chosen = [clip for clip in clips if clip.split == split and clip.labelled]
    if not chosen:
        unlabelled = any(clip.split == split for clip in clips)
        raise InputError(
            f"{data.root}: expected {'labelled ' * unlabelled}clips of split {split!r}, found none"
        )
    for event in data.events:
        positives = sum(event in clip.labels for clip in chosen)
        if not 0 < positives < len(chosen):
            raise InputError(
                f"{data.root}: event {event!r}: expected positive and negative clips in split {split!r}, "
                f"found {positives} positive of {len(chosen)}"
            )
