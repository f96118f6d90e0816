"""Long recordings cut into clips: those with timed labels, and those without labels."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from qkd_jax.config import AnyData, CutData, FeatureConfig
from qkd_jax.data.cache import count_rows
from qkd_jax.data.clips import UNLABELLED, Annotation, Clip
from qkd_jax.data.features import cached_features

_REST = 0.1
"""A shorter rest, as a fraction of a clip, is no part of its own."""
_ENOUGH = 0.5
"""Seconds of a longer event that a part needs to be a positive clip."""


def cut(
    clips: Sequence[Clip], data: AnyData, features: FeatureConfig, frames: Mapping[str, int], *, timed: bool
) -> list[Clip]:
    """`clips`, of which long ones are replaced by parts of `data.clip_seconds`, one after the other.

    Only recordings of a source of timed labels are cut, and those of `data.unlabelled`.  The rest of a
    recording becomes a part that ends with it and overlaps the one before; if it is shorter than a tenth of a
    clip, it is appended to that one.  `frames` has the lengths of their features by name.

    A part has an event as a label if it holds at least half of the event, or 0.5 s, or is filled by half with
    it.  A part that holds less than this of one of `data.events` is neither a positive nor a negative: it is
    left out, and a printed line counts these.  An event without length belongs to the part that it is in.

    For `timed` events, a part has the annotations within it, cut to it.  In training, a rest of less than a
    tenth of a clip is left out, so that all parts have the same length.  In other splits, any rest is
    appended, and no cut goes through one of `data.events`: parts are longer where these are.
    """
    result, recordings, slivers = [], 0, 0
    for clip in clips:
        times = _times(clip, frames[clip.name], data, features, timed) if _can_be_cut(clip, data) else []
        if not times:
            result.append(clip)
            continue
        recordings += 1
        for index, (start, end) in enumerate(times):
            part, clear = _part(clip, start, end, index == len(times) - 1, data, timed)
            slivers += not clear
            if clear:
                result.append(part)
    if recordings:
        print(
            f"cut {recordings} recordings of {len(clips)} into parts of {data.clip_seconds:g} s", flush=True
        )
    if slivers:
        print(
            f"left out {slivers} parts that hold less than half of an event, and less than {_ENOUGH} s of it",
            flush=True,
        )
    return result


def cached_frames(
    clips: Sequence[Clip], data: AnyData, features: FeatureConfig, cache: Path
) -> dict[str, int]:
    """By name, the number of frames in `cache` of the recordings that `cut` may cut."""
    clips = [clip for clip in clips if _can_be_cut(clip, data)]
    entries, _ = cached_features(clips, features, cache, data.channel)
    return {clip.name: count_rows(entry, features.n_mels) for clip, entry in zip(clips, entries)}


def _can_be_cut(clip: Clip, data: AnyData) -> bool:
    return clip.name.startswith(UNLABELLED) or isinstance(data, CutData)


def end_of(rows: int, features: FeatureConfig) -> float:
    """Length in seconds of a recording with `rows` frames of features, less than one hop too long."""
    return (rows * features.hop_length + features.win_length) / features.sample_rate


def length_of(clip: Clip, frames: int, features: FeatureConfig) -> float:
    """Length in seconds of a clip of a recording with `frames` frames of features, exact to half a hop."""
    if clip.part is not None:
        return clip.part[1] - clip.part[0]
    return ((frames - 0.5) * features.hop_length + features.win_length) / features.sample_rate


def rows_of(clip: Clip, features: FeatureConfig) -> slice:
    """The frames of a recording's features that belong to the clip."""
    if clip.part is None:
        return slice(None)
    start, end = clip.part
    first = round(start * features.sample_rate / features.hop_length)
    return slice(first, first + features.frames(round((end - start) * features.sample_rate)))


def _times(
    clip: Clip, rows: int, data: AnyData, features: FeatureConfig, timed: bool
) -> list[tuple[float, float]]:
    """Start and end of each part of a recording with `rows` frames, in seconds; none if it isn't cut."""
    hop = features.hop_length / features.sample_rate
    frames, step = features.frames(round(data.clip_seconds * features.sample_rate)), data.clip_seconds / hop
    last = max(rows - frames, 0)  # where the last clip begins
    starts = [round(index * step) for index in range(int(last / step + 1e-6) + 1)]
    trains, scores = timed and clip.split == "train", timed and clip.split != "train"
    if scores:
        events = [each for each in clip.annotations or () if each.event in data.events]
        starts = [
            start for start in starts if not any(each.onset < start * hop < each.offset for each in events)
        ]
    elif last - starts[-1] >= _REST * step:
        starts.append(last)
    rest = last - starts[-1]
    if len(starts) == 1 and not (trains and rest):
        return []
    ends = [start * hop + data.clip_seconds for start in starts]
    if scores:
        ends[:-1] = [start * hop for start in starts[1:]]
    if not trains:
        ends[-1] += rest * hop
    # To milliseconds, of which a hop has several, so that names are short.
    return [(round(start * hop, 3), round(end, 3)) for start, end in zip(starts, ends)]


def _part(clip: Clip, start: float, end: float, last: bool, data: AnyData, timed: bool) -> tuple[Clip, bool]:
    """The part from `start` to `end`, and whether it is a positive or a negative of each event."""
    within = list(_within(clip.annotations or (), start, end, last))
    labels, unclear = {each.event for each, _ in within}, set()
    if not timed:
        labels = {each.event for each, enough in within if enough}
        unclear = {each.event for each, _ in within} - labels
    annotations = None if clip.annotations is None else tuple(each for each, _ in within)
    part = dataclasses.replace(
        clip,
        name=f"{clip.name}#t={_text(start)},{_text(end)}",
        file=clip.file or clip.name,
        part=(start, end),
        labels=frozenset(labels),
        annotations=annotations,
    )
    return part, unclear.isdisjoint(data.events)


def _within(
    annotations: Sequence[Annotation], start: float, end: float, last: bool
) -> Iterator[tuple[Annotation, bool]]:
    """Annotations cut to a part, relative to its start, and whether the part holds enough of each event."""
    for event, onset, offset in annotations:
        overlap = min(offset, end) - max(onset, start)
        if overlap > 0 or (onset == offset and start <= onset and (onset < end or last)):
            enough = overlap > min((offset - onset) / 2, _ENOUGH, (end - start) / 2) - 1e-6
            yield Annotation(event, max(onset - start, 0.0), max(min(offset, end), onset) - start), enough


def _text(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")
