"""A recording with its labels; dividing recordings into splits; the list of a run's recordings."""

import dataclasses
import functools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from qkd_jax.config import FoldData, from_json
from qkd_jax.config.fields import STRICT
from qkd_jax.data.tables import inside
from qkd_jax.errors import InputError, printable
from qkd_jax.system.files import whole_file

SPLITS = ("train", "valid", "test")
KINDS = ("strong", "weak", "unlabelled")
NOUNS = dict(zip(KINDS, ("strongly labelled", "weakly labelled", "unlabelled")))
UNLABELLED = "unlabelled:"
"""Begins the names of recordings in `data.unlabelled`, which may be named like others in `data.root`."""
VIEW = "view:"
"""Begins the names of views, which are made from training recordings."""
MAX_SECONDS = 1e9
"""Longest recording that an annotation may refer to."""
_MANY, _FEW = 8, 5


class Annotation(NamedTuple):
    """An event in a recording, from `onset` to `offset`, in seconds."""

    event: str
    onset: float
    offset: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A recording or a part of one; `split` is None until it has one."""

    name: str
    """Unique in a run: the recording's path relative to the source's root; `PATH#t=10,20` for a part."""
    root: Path
    """Folder of the source, or of recordings without labels."""
    labels: frozenset[str]
    group: str
    """Clips of one group (a session, a speaker, an original recording) stay in one split."""
    split: str | None = None
    annotations: tuple[Annotation, ...] | None = None
    """Its events with onsets and offsets, relative to its start; None if these are unknown."""
    labelled: bool = True
    """False if it is unknown which events it has; `labels` is then empty."""
    file: str | None = None
    """The recording's path relative to `root`, if that isn't `name`."""
    part: tuple[float, float] | None = None
    """Start and end of the part, in seconds of the recording; None for the whole recording."""

    @property
    def path(self) -> Path:
        """Path of the recording."""
        return self.root / (self.file or self.name)

    def channel(self, channel: int | None) -> int | None:
        """The channel to read, None for the mean of all: a view has only that of its recordings."""
        return None if self.name.startswith(VIEW) else channel

    @property
    def kind(self) -> str:
        """Its kind of labels, one of `KINDS`."""
        if not self.labelled:
            return "unlabelled"
        return "weak" if self.annotations is None else "strong"


_Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]


@checked_dataclass(frozen=True, kw_only=True, config=STRICT)
class _Row:
    """A clip as a line of JSON."""

    name: str
    labels: tuple[str, ...]
    group: str
    split: Literal["train", "valid", "test"] | None
    annotations: tuple[tuple[str, _Seconds, _Seconds], ...] | None
    labelled: bool
    file: str | None = None
    part: tuple[_Seconds, _Seconds] | None = None


def targets(clips: Sequence[Clip], events: Sequence[str]) -> np.ndarray:
    """float32 [clips, events]: 1 where a clip holds an event, else 0, also for unlabelled clips."""
    return np.array([[event in clip.labels for event in events] for clip in clips], np.float32).reshape(
        len(clips), len(events)
    )


def divide(
    clips: Sequence[Clip],
    events: Collection[str] = (),
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> list[Clip]:
    """Give each of `clips` a split: stratified by their sets of `events`, each group in one split.

    Without `events` all labels count; unlabelled clips are stratified separately.  Groups are assigned in
    order of size, the largest first and ties at random, to the split that lacks most of their clips
    (iterative stratification after Sechidis et al. 2011, on whole groups).
    """

    @functools.cache  # clips with the same labels share one set
    def counted(labels: frozenset[str]) -> frozenset[str]:
        return labels.intersection(events) if events else labels

    groups = defaultdict(list)
    for clip in clips:
        groups[clip.group].append(counted(clip.labels) if clip.labelled else None)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda name: -len(groups[name]))
    kinds = Counter(kind for members in groups.values() for kind in members)
    lack = {split: {kind: share * n for kind, n in kinds.items()} for split, share in zip(SPLITS, shares)}
    chosen = {}
    for name in order:
        group = Counter(groups[name])

        def need(split: str, group: Counter[frozenset[str] | None] = group) -> float:
            # Relative to all clips of the kind, so that rare kinds count as much as common ones.
            return sum(n * lack[split][kind] / kinds[kind] for kind, n in group.items())

        chosen[name] = max(SPLITS, key=need)
        for kind, n in group.items():
            lack[chosen[name]][kind] -= n
    return [dataclasses.replace(clip, split=chosen[clip.group]) for clip in clips]


def with_splits(clips: Sequence[Clip], events: Collection[str]) -> list[Clip]:
    """`clips` with the splits of their source; those that have none are divided by `divide`.

    Raises InputError if one group is in two splits, which would leak training data.
    """
    if undivided := [clip for clip in clips if clip.split is None]:
        divided = iter(divide(undivided, events))
        clips = [next(divided) if clip.split is None else clip for clip in clips]
    first: dict[str, Clip] = {}
    for clip in clips:
        other = first.setdefault(clip.group, clip)
        if other.split != clip.split:
            raise InputError(
                f"{clip.root}: expected all clips of group {clip.group!r} in one split, found {other.name} "
                f"in {other.split} and {clip.name} in {clip.split}"
            )
    return list(clips)


def splits_of_folds(config: FoldData, folds: Iterable[int]) -> dict[str, str]:
    """The split of each of `folds`: the first of `config.folds` for the test, the one before for validation.

    By default the last is for the test; before the first comes the last.  Raises InputError for another fold,
    and if there are fewer than three.

    >>> splits_of_folds(FoldData(folds=(1,)), (1, 2, 3))
    {'1': 'test', '2': 'train', '3': 'valid'}
    """
    order = sorted(folds)
    if len(order) < 3:
        raise InputError(f"--data.folds: expected a table of at least 3 folds, found {len(order)}")
    for fold in config.folds:
        if fold not in order:
            raise InputError(f"--data.folds: expected some of {', '.join(map(str, order))}, got {fold}")
    test = (*config.folds, *order[-1:])[0]
    place = order.index(test)
    return {str(fold): "train" for fold in order} | {str(order[place - 1]): "valid", str(test): "test"}


def summary(clips: Sequence[Clip], events: Sequence[str]) -> str:
    """Lines with the clips of each split counted: in all, by kind if kinds differ, and by event.

    Of more than eight events, those with the fewest training clips are listed.
    """
    counts = Counter((clip.split, label) for clip in clips for label in clip.labels)
    kinds = Counter((clip.split, clip.kind) for clip in clips)
    sizes = Counter(clip.split for clip in clips)
    lines = ["recordings: " + ", ".join(f"{sizes[split]} {split}" for split in SPLITS)]
    if any(kind != "weak" for _, kind in kinds):
        for kind in KINDS:
            lines.append(f"  {kind}: " + ", ".join(f"{kinds[split, kind]} {split}" for split in SPLITS))
    rarest = sorted(events, key=lambda event: counts["train", event])
    shown = events if len(events) <= _MANY else rarest[:_FEW]
    for event in shown:
        lines.append(
            f"  {printable(event)}: " + ", ".join(f"{counts[split, event]} {split}" for split in SPLITS)
        )
    if len(shown) < len(events):
        most = counts["train", rarest[-1]]
        lines.append(f"  {len(events) - len(shown)} more events, with up to {most} train")
    others = Counter(label for clip in clips for label in clip.labels.difference(events)).most_common()
    if others:
        named = ", ".join(f"{printable(label)} ({count})" for label, count in others[:10])
        more = f" and {len(others) - 10} more" if len(others) > 10 else ""
        lines.append(
            f"  labels that are not events (a recording with only these is a negative): {named}{more}"
        )
    return "\n".join(lines)


def write_clips(path: Path, clips: Sequence[Clip]) -> None:
    """Write `clips` to a file, one line of JSON each."""
    with whole_file(path, "w") as file:
        for clip in clips:
            fields: dict[str, Any] = {
                "name": clip.name,
                "labels": sorted(clip.labels),
                "group": clip.group,
                "split": clip.split,
                "annotations": clip.annotations,
                "labelled": clip.labelled,
            }
            if clip.file is not None:
                fields |= {"file": clip.file, "part": clip.part}
            file.write(json.dumps(fields) + "\n")


def read_clip_list(path: Path, root: Path, unlabelled: Path | None = None) -> list[Clip]:
    """The clips that `write_clips` wrote to `path`; raises InputError.

    Their recordings are under `root`, those named as `UNLABELLED` under `unlabelled`.
    """
    what = f"{path}: expected a run's clips.jsonl"
    same: dict[Any, Any] = {}  # millions of clips share few sets of labels

    def clip(number: int, line: str) -> Clip:
        row = from_json(_Row, line, f"{what}: line {number}")
        name, labels = inside(row.name, f"{what}: line {number}: name"), frozenset(row.labels)
        file = row.file and inside(row.file, f"{what}: line {number}: file")
        if row.part and row.part[0] >= row.part[1]:
            raise InputError(f"{what}: line {number}: part: expected a start, then an end, found {row.part}")
        return Clip(
            name=name,
            root=unlabelled if unlabelled and file and name.startswith(UNLABELLED) else root,
            labels=same.setdefault(labels, labels),
            group=name if row.group == name else row.group,
            split=same.setdefault(row.split, row.split),
            annotations=None
            if row.annotations is None
            else tuple(Annotation(*each) for each in row.annotations),
            labelled=row.labelled,
            file=file or None,
            part=row.part,
        )

    try:
        with open(path, encoding="utf-8") as file:
            return [clip(number, line) for number, line in enumerate(file, 1)]
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{what}: {error}") from None
