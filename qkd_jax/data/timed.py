"""Clips of which some say when their events are: targets by frame, one split, and batches of all kinds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qkd_jax.config import FeatureConfig, RunConfig
from qkd_jax.data.batches import Batch, Batches, mixed_batches, tiled
from qkd_jax.data.clip_list import list_bad
from qkd_jax.data.clips import KINDS, Clip, Span, targets
from qkd_jax.data.dataset import check_split
from qkd_jax.data.features import CachedFeatures, cached_features
from qkd_jax.errors import InputError

_STRONG, _WEAK, _ = range(len(KINDS))


def frame_targets(
    spans: Sequence[Span], events: Sequence[str], frames: int, features: FeatureConfig
) -> np.ndarray:
    """1 where an event overlaps the time that a frame stands for, else 0: float32 [frames, events].

    That is a hop long, around the centre of the frame's window: frame f stands for samples
    f·hop + (win ± hop)/2.  What is before the first frame or beyond the last is cut, and so are
    events that aren't among `events`.
    """
    result = np.zeros((frames, len(events)), np.float32)
    before, hop = (features.win_length - features.hop_length) / 2, features.hop_length
    for event, *times in spans:
        if event in events:
            # To a millionth of a sample, so that 0.0175 s is where a frame ends, not 1e-17 s beyond.
            samples = np.round(np.multiply(times, features.sample_rate), 6)
            first, last = (samples - before) / hop
            rows = slice(max(int(np.floor(first)), 0), max(int(np.ceil(last)), 0))
            result[rows, events.index(event)] = 1
    return result


@dataclass(frozen=True)
class SedDataset:
    """Clips of one split: `features` float32 [frames, mels] each, `targets` float32 [clips, events].

    Targets are those of whole clips, zeros where a clip is unlabelled; `kind` int8 [clips] is a
    place in `KINDS`: 0 strong, 1 weak, 2 unlabelled.  `spans` are of `events`, none unless a clip
    is strong; `seconds` is how long the recordings are.
    """

    names: list[str]
    features: Sequence[np.ndarray]
    targets: np.ndarray
    kind: np.ndarray
    spans: list[tuple[Span, ...]]
    seconds: list[float]
    events: tuple[str, ...]
    front_end: FeatureConfig

    def strong(self, clip: int) -> np.ndarray:
        """`frame_targets` of one clip, zeros unless it is strong: float32 [frames, events]."""
        return frame_targets(self.spans[clip], self.events, len(self.features[clip]), self.front_end)


def load_sed_split(config: RunConfig, clips: Sequence[Clip], split: str, cache: Path) -> SedDataset:
    """The features, from `cache` or computed, and what is known of the clips of one split.

    Raises InputError if a recording can't be used, if there are no clips with labels, if an event
    has no positive or no negative clip, or if a clip that isn't for training isn't strong.
    """
    import soundfile

    chosen = [clip for clip in clips if clip.split == split]
    entries, bad = cached_features(chosen, config.features, cache)
    if bad:
        raise InputError(*list_bad(bad, len(chosen)))
    check_split(config.data, clips, split)
    if split != "train" and (other := next((clip for clip in chosen if clip.spans is None), None)):
        raise InputError(
            f"{config.data.root}: expected onsets and offsets of all clips of split {split!r}, "
            f"found none of {other.name}"
        )
    events, seconds = config.data.events, [soundfile.info(clip.path).duration for clip in chosen]
    for clip, end in zip(chosen, seconds):
        for span in clip.spans or ():
            if split != "train" and span.onset >= end:
                raise InputError(
                    f"{clip.path}: expected onsets within {end:g} s, found {span.event} at {span.onset:g} s"
                )
    return SedDataset(
        names=[clip.name for clip in chosen],
        features=CachedFeatures(entries),
        targets=targets(chosen, events),
        kind=np.array([KINDS.index(clip.kind) for clip in chosen], np.int8),
        spans=[tuple(span for span in clip.spans or () if span.event in events) for clip in chosen],
        seconds=seconds,
        events=events,
        front_end=config.features,
    )


def sed_batches(
    data: SedDataset,
    *,
    frames: int,
    sizes: tuple[int, int, int],
    seed: int,
    hop: int = 1,
    teacher: np.ndarray | None = None,
    teacher_clip: np.ndarray | None = None,
    step_of_frames: np.ndarray | None = None,
    embeddings: np.ndarray | None = None,
    row_of_step: np.ndarray | None = None,
) -> Batches:
    """Endless batches of strong, weak and unlabelled clips, in this order and `sizes` of each.

    `batches[step]` depends on `seed` and `step` alone.  Each kind is shuffled and repeated on its
    own.  A batch holds, all float32:

    - `features` [batch, frames, mels]: of a clip longer than that a part that begins at a random
      multiple of `hop`, a shorter one `tiled`;
    - `strong` [batch, frames, events]: the frames' targets, zeros where they are unknown;
    - `weak` [batch, events]: the clips', of strong ones those of the frames that are left, zeros
      where they are unknown;
    - `has_strong` and `has_weak` [batch]: 1 for strong clips, and 1 for weak ones;
    - given `teacher`, probabilities [clips, steps, events] whose step `step_of_frames[f]` says of
      a clip's (or tiled clip's) frame f, `teacher` [batch, frames, events]; and given
      `teacher_clip` [clips, events], `teacher_clip` [batch, events], those of whole clips;
    - given `embeddings` [clips, rows, size] of clips no longer than `frames`, of which `row_of_step[t]`
      stands for step t, `embedding` [batch, steps, size].

    Raises InputError if a kind has fewer clips than a batch takes, and as it reads ValueError
    if `step_of_frames` doesn't reach as far as a part of a clip.
    """
    for which, size in enumerate(sizes):
        if (count := int((data.kind == which).sum())) < size:
            raise InputError(
                f"train.{KINDS[which]}: expected at most the {count} {KINDS[which]} clips that there are "
                f"in a step, got {size}"
            )

    def example(clip: int, rng: np.random.Generator) -> Batch:
        features, kind = data.features[clip], data.kind[clip]
        start = hop * rng.integers(max(len(features) - frames, 0) // hop + 1)
        part = slice(start, start + frames)
        strong = tiled(data.strong(clip)[part], frames)
        batch = {
            "features": tiled(features[part], frames),
            "strong": strong,
            "weak": strong.max(axis=0) if kind == _STRONG else data.targets[clip],
            "has_strong": np.float32(kind == _STRONG),
            "has_weak": np.float32(kind == _WEAK),
        }
        if teacher is not None and step_of_frames is not None:
            if len(step_of_frames) < part.stop:
                raise ValueError(
                    f"step_of_frames: expected the steps of {part.stop} frames, got {len(step_of_frames)}"
                )
            batch["teacher"] = teacher[clip][step_of_frames[part]]
        if teacher_clip is not None:
            batch["teacher_clip"] = teacher_clip[clip]
        if embeddings is not None and row_of_step is not None:
            batch["embedding"] = embeddings[clip][row_of_step].astype(np.float32)
        return batch

    clips = [np.flatnonzero(data.kind == which) for which in range(len(KINDS))]
    return mixed_batches(clips, sizes, example, seed=seed)
