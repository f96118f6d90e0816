"""The clips of a run's data settings, and which of their recordings can be used."""

import dataclasses
import itertools
import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

from qkd_jax.config import (
    AnyData,
    CutData,
    DemoData,
    ESC50Data,
    FeatureConfig,
    FoldData,
    ManifestData,
    UrbanSound8KData,
)
from qkd_jax.data.cache import read_entry
from qkd_jax.data.clips import UNLABELLED, Clip
from qkd_jax.data.features import cached_features
from qkd_jax.data.measure import is_silent
from qkd_jax.data.parts import cached_frames, cut, end_of
from qkd_jax.data.sources import SOURCES
from qkd_jax.data.sources.walk import recordings_below
from qkd_jax.data.spelling import is_utf8, similar_names, with_names_on_disk, with_one_spelling
from qkd_jax.data.tables import plain
from qkd_jax.errors import InputError, noted

_MAX_LISTED = 20


def read_clips(data: AnyData, listed: list[Clip] | None = None) -> list[Clip]:
    """The clips of `data`, `with_fewer_negatives` unless long ones will be cut: negatives are counted then.

    `listed` are its `listed_clips`, if these are known.  Raises InputError as they do.
    """
    listed = listed_clips(data) if listed is None else listed
    return listed if isinstance(data, CutData) else with_fewer_negatives(listed, data)


def listed_clips(data: AnyData) -> list[Clip]:
    """All clips of `data`.

    Names and labels are spelled as in `data.spelling`.  The split is None if the source has no splits.
    Recordings in `data.unlabelled` that the source doesn't list come last, for training.  Raises InputError
    for a faulty table, a recording or an event listed twice, and an event that no recording has.
    """
    if len(set(map(plain, data.events))) < len(data.events):
        raise InputError(f"--data.events: expected each event once, got {', '.join(data.events)}")
    clips = with_one_spelling(with_names_on_disk(SOURCES[type(data)](data)), data.events)
    unlabelled = _unlabelled(Path(data.unlabelled), clips) if data.unlabelled else []
    for name, count in Counter(clip.name for clip in clips).most_common(1):
        if count > 1:
            raise InputError(f"{data.root}: expected each recording once, found {name} {count} times")
    counts = Counter(label for clip in clips for label in clip.labels)
    for event in data.events:
        if event not in counts:
            known = ", ".join(f"{label} ({count})" for label, count in counts.most_common(_MAX_LISTED))
            if not known:
                raise InputError("--data.events: expected labelled recordings, found none")
            raise InputError(f"--data.events: expected one of {known}, got {event!r}")
    if isinstance(data, ESC50Data | UrbanSound8KData):
        clips = _with_published_splits(clips)
    return clips + unlabelled


def with_fewer_negatives(clips: list[Clip], data: AnyData) -> list[Clip]:
    """`clips`, with `data.negatives` of those without any of its events, drawn at random."""
    if data.negatives is None:
        return clips
    labelled = [clip for clip in clips if clip.labelled]
    events = data.events or frozenset().union(*(clip.labels for clip in labelled))
    negatives = {clip.name for clip in labelled if clip.labels.isdisjoint(events)}
    kept = random.Random(0).sample(sorted(negatives), min(data.negatives, len(negatives)))
    left_out = negatives.difference(kept)
    return [clip for clip in clips if clip.name not in left_out]


def _with_published_splits(clips: list[Clip]) -> list[Clip]:
    """`clips`; a group in several splits becomes a group in each, since published splits hold."""
    splits = defaultdict(set)
    for clip in clips:
        splits[clip.group].add(clip.split)
    return [
        clip
        if len(splits[clip.group]) == 1
        else dataclasses.replace(clip, group=f"{clip.group} {clip.split}")
        for clip in clips
    ]


def _unlabelled(folder: Path, listed: Sequence[Clip]) -> list[Clip]:
    """The recordings in `folder` that aren't `listed`, as unlabelled training clips; raises InputError."""
    names = recordings_below(folder)
    if not names:
        raise InputError(f"--data.unlabelled: expected a folder of recordings at {folder}, found none")
    known = {os.path.realpath(clip.path) for clip in listed}
    clips = [
        Clip(
            name=UNLABELLED + name,
            root=folder,
            labels=frozenset(),
            group=UNLABELLED + name,
            split="train",
            labelled=False,
            file=name,
        )
        for name in names
        if os.path.realpath(folder / name) not in known
    ]
    if not clips:
        raise InputError(f"--data.unlabelled: expected recordings without labels in {folder}, found none")
    return clips


def usable_clips(
    data: AnyData, features: FeatureConfig, cache: Path, listed: list[Clip] | None = None
) -> tuple[list[Clip], list[str]]:
    """The clips of `data` that can be read, whose features are then in `cache`, and the faults of the others.

    `listed` are its `listed_clips`, if these are known.  Raises InputError if there are others, unless
    `data.skip_bad`.
    """

    def read(named: list[Clip]) -> tuple[Mapping[str, str], Callable[[int], tuple[int, bool]]]:
        entries, unread = cached_features(named, features, cache, data.channel)

        def measured(place: int) -> tuple[int, bool]:
            rows = read_entry(entries[place])
            return len(rows), is_silent(rows, features)

        return unread, measured

    clips = read_clips(data, listed)
    bad = faults(clips, data, features, read)
    usable = without(bad, clips, data)
    if bad:
        print(
            f"skipped {len(bad)} of {len(clips)} recordings:",
            *list_bad(bad, len(clips))[1:],
            sep="\n",
            flush=True,
        )
    return usable, list(bad.values())


def faults(
    clips: Sequence[Clip],
    data: AnyData,
    features: FeatureConfig,
    read: Callable[[list[Clip]], tuple[Mapping[str, str], Callable[[int], tuple[int, bool]]]],
) -> dict[str, str]:
    """Why recordings can't be used: by name, in the order of `clips`.

    `read` is given those whose names are text.  It returns the faults of those that can't be read, and a
    function that gives for another one, by its place, the number of its frames, and whether all are silent.
    """
    bad = {
        clip.name: str(InputError(f"{clip.path}: expected a name in UTF-8, found {clip.name!r}"))
        for clip in clips
        if not is_utf8(clip.name)
    }
    named = [clip for clip in clips if clip.name not in bad]
    unread, measured = read(named)
    bad |= unread
    for name, other in similar_names(clip for clip in clips if clip.name in bad).items():
        bad[name] += str(InputError(f"; there is {other!r}, spelled otherwise"))
    for place, clip in enumerate(named):
        if clip.labels and clip.name not in bad:
            rows, silent = measured(place)
            # Sets that others published have onsets after the end; training ignores these.
            end = end_of(rows, features) if isinstance(data, CutData) else math.inf
            if reason := contradiction(clip, silent=silent, end=end):
                bad[clip.name] = reason
    return {clip.name: bad[clip.name] for clip in clips if clip.name in bad}


def without(
    bad: dict[str, str], clips: Sequence[Clip], data: AnyData, errors: list[InputError] | None = None
) -> list[Clip]:
    """`clips` without those with the faults `bad`.

    Raises InputError if none is left, and, unless `data.skip_bad`, if there are `bad` ones; `errors`, if
    given, get the latter.
    """
    if len(bad) == len(clips):
        raise InputError(*list_bad(bad, len(clips)))
    with noted(errors):
        if bad and not data.skip_bad:
            raise InputError(*list_bad(bad, len(clips)), "to skip them: --data.skip-bad")
    return [clip for clip in clips if clip.name not in bad]


def contradiction(clip: Clip, *, silent: bool, end: float) -> str:
    """Why the labels of a recording can't be right: it is silent, or ends before an event; else empty.

    `end` is its length in seconds, less than a hop too long.
    """
    if clip.labels and silent:
        return f"{clip.path}: silent, but labelled {', '.join(sorted(clip.labels))}"
    event, onset, _ = max(clip.annotations or [("", -1.0, 0.0)], key=lambda each: each[1])
    if onset > end:
        return f"{clip.path}: expected onsets before the end ({end:.1f} s), found {event} at {onset:g} s"
    return ""


def list_bad(bad: dict[str, str], count: int) -> list[str]:
    """Lines that list which of `count` recordings can't be used, and why; the first 20 only."""
    more = [f"and {len(bad) - _MAX_LISTED} more"] if len(bad) > _MAX_LISTED else []
    lines = [*list(bad.values())[:_MAX_LISTED], *more]
    return [f"{len(bad)} of {count} recordings can't be used:", *(f"  {line}" for line in lines)]


def recordings_of(data: AnyData) -> AnyData:
    """`data`, for the demo the manifest that it has written, so that no recordings are generated."""
    if not isinstance(data, DemoData):
        return data
    return ManifestData(root=data.root, events=data.events, clip_seconds=data.clip_seconds)


def clips_to_score(
    data: AnyData,
    features: FeatureConfig,
    cache: Path,
    split: str,
    own: Sequence[Clip],
    *,
    timed: bool = False,
) -> list[Clip]:
    """The labelled clips of `data`; those without a split get `split`.  Raises InputError.

    Recordings with the name of one of a run's `own` keep its split, since the run may have trained on them,
    and so do those of its `data.unlabelled`: the same files, or others of their names and sizes.  Printed
    lines count both.  Long recordings with timed labels are `cut`, and then `with_fewer_negatives`.
    """
    data = dataclasses.replace(recordings_of(data), unlabelled=None)
    if isinstance(data, FoldData):
        data = dataclasses.replace(data, folds=())
    clips, _ = usable_clips(data, features, cache)
    known = {clip.file or clip.name: clip.split for clip in own if not clip.name.startswith(UNLABELLED)}
    if shared := sum(clip.name in known for clip in clips):
        print(
            f"{shared} of {len(clips)} recordings share a name with a recording of the run and keep its split"
        )
    unlabelled = {clip.path: clip.file or clip.name for clip in own if clip.name.startswith(UNLABELLED)}
    marks = set[Hashable]().union(*itertools.starmap(_marks, unlabelled.items()))
    if seen := {clip.name for clip in clips if marks and not marks.isdisjoint(_marks(clip.path, clip.name))}:
        print(f"{len(seen)} of {len(clips)} recordings are among the run's unlabelled ones and stay in train")
        known |= dict.fromkeys(seen, "train")
    clips = [dataclasses.replace(clip, split=known.get(clip.name) or clip.split or split) for clip in clips]
    frames = cached_frames(clips, data, features, cache)
    return with_fewer_negatives(cut(clips, data, features, frames, timed=timed), data)


def _marks(path: Path, name: str) -> set[Hashable]:
    """What tells a recording: its real path, or its name with its size; nothing if it isn't there."""
    return {os.path.realpath(path), (name, path.stat().st_size)} if path.is_file() else set()
