"""The clips of one split: features, targets, and for timed events also onsets and offsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qkd_jax.config import AnyData, FeatureConfig, RunConfig
from qkd_jax.data.cache import count_rows
from qkd_jax.data.clip_list import list_bad
from qkd_jax.data.clips import KINDS, UNLABELLED, VIEW, Annotation, Clip, targets
from qkd_jax.data.features import CachedFeatures, cached_features
from qkd_jax.data.parts import length_of, rows_of
from qkd_jax.errors import InputError


@dataclass(frozen=True)
class Dataset:
    """Clips of one split: `features` float32 [frames, mels] each, `targets` float32 [clips, events].

    `targets` are 0 for unlabelled clips.  `kind` int8 [clips] is an index of `KINDS`: 0 strong, 1 weak,
    2 unlabelled.  For timed events alone, each clip has `annotations` of `events`, none unless it is strong,
    and `seconds`, the length of its recording.  `clips` has the recordings.
    """

    names: list[str]
    features: Sequence[np.ndarray]
    targets: np.ndarray
    events: tuple[str, ...]
    kind: np.ndarray
    annotations: Sequence[tuple[Annotation, ...]] = ()
    seconds: Sequence[float] = ()
    clips: Sequence[Clip] = ()

    @property
    def labelled(self) -> np.ndarray:
        """The indices of the clips whose events are known."""
        return np.flatnonzero(self.kind != KINDS.index("unlabelled"))

    def indices(self, kind: str) -> np.ndarray:
        """The indices of the clips of one of `KINDS`."""
        return np.flatnonzero(self.kind == KINDS.index(kind))


def load_split(
    config: RunConfig, clips: Sequence[Clip], split: str, cache: Path, *, unlabelled: bool = False
) -> Dataset:
    """The clips of one split, their features read from `cache` or computed.

    Runs of timed events get all clips, with their annotations; other runs get the labelled clips, and with
    `unlabelled` also views and those of `config.data.unlabelled`.  Raises InputError if a recording can't be
    used, if there are no labelled clips, if an event has no positive or no negative clip, or, for timed
    events, if a clip of another split than `train` has no annotations, or an event no length.
    """
    also: tuple[str, ...] = (UNLABELLED, VIEW) if unlabelled else ()
    chosen = [
        clip
        for clip in clips
        if clip.split == split and (config.timed or clip.labelled or clip.name.startswith(also))
    ]
    entries, bad = cached_features(chosen, config.features, cache, config.data.channel)
    if bad:
        raise InputError(*list_bad(bad, len(chosen)))
    check_split(config.data, clips, split)
    events = config.data.events
    features = CachedFeatures(entries, [rows_of(clip, config.features) for clip in chosen])
    seconds = []
    if config.timed:
        frames = (count_rows(entry, config.features.n_mels) for entry in entries)
        seconds = [length_of(clip, rows, config.features) for clip, rows in zip(chosen, frames)]
        check_times(config.data, chosen, seconds, split)
    return Dataset(
        names=[clip.name for clip in chosen],
        features=features,
        targets=targets(chosen, events),
        events=events,
        kind=np.array([KINDS.index(clip.kind) for clip in chosen], np.int8),
        annotations=[
            tuple(each for each in clip.annotations or () if each.event in events)
            for clip in (chosen if config.timed else ())
        ],
        seconds=seconds,
        clips=chosen,
    )


def check_split(data: AnyData, clips: Sequence[Clip], split: str) -> None:
    """Raise InputError unless each of `data.events` has positive and negative labelled clips in `split`."""
    chosen = [clip for clip in clips if clip.split == split and clip.labelled]
    if not chosen:
        unlabelled = any(clip.split == split for clip in clips)
        raise InputError(
            f"{data.root}: expected {'labelled ' * unlabelled}clips in split {split!r}, found none"
        )
    for event in data.events:
        positives = sum(event in clip.labels for clip in chosen)
        if not 0 < positives < len(chosen):
            raise InputError(
                f"{data.root}: event {event!r}: expected positive and negative clips in split {split!r}, "
                f"found {positives} positive of {len(chosen)}"
            )


def check_times(data: AnyData, clips: Sequence[Clip], seconds: Sequence[float], split: str) -> None:
    """Raise InputError unless `clips` of `split`, of these lengths, can be scored on timed events."""
    if split != "train" and (other := next((clip for clip in clips if clip.annotations is None), None)):
        raise InputError(
            f"{data.root}: expected onsets and offsets for all clips in split {split!r}, "
            f"found none for {other.name}"
        )
    for clip, end in zip(clips, seconds):
        for event, onset, offset in clip.annotations or ():
            if onset == offset and event in data.events:
                raise InputError(
                    f"{clip.path}: expected an offset after the onset for timed events, found {event} "
                    f"from {onset:g} to {offset:g} s"
                )
            if split != "train" and onset >= end:
                raise InputError(
                    f"{clip.path}: expected onsets before the end ({end:g} s), found {event} at {onset:g} s"
                )


def frame_targets(
    annotations: Sequence[Annotation], events: Sequence[str], frames: int, features: FeatureConfig
) -> np.ndarray:
    """1 where an event overlaps the time that a frame stands for, else 0: float32 [frames, events].

    That time is one hop long, around the centre of the frame's window: frame f stands for the samples
    f·hop + (win ± hop)/2.  Parts before the first or after the last frame, and other events, are ignored.
    """
    result = np.zeros((frames, len(events)), np.float32)
    before, hop = (features.win_length - features.hop_length) / 2, features.hop_length
    for event, *times in annotations:
        if event in events:
            # Rounded to 1e-6 samples, so that 0.0175 s is the end of a frame and not 1e-17 s after it.
            samples = np.round(np.multiply(times, features.sample_rate), 6)
            first, last = (samples - before) / hop
            rows = slice(max(int(np.floor(first)), 0), max(int(np.ceil(last)), 0))
            result[rows, events.index(event)] = 1
    return result
