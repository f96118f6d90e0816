"""A recording with labels, dividing recordings into splits, and lists of them in a file."""

import dataclasses
import functools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from qkd_jax.config import from_json
from qkd_jax.data.tables import inside
from qkd_jax.errors import InputError, printable
from qkd_jax.system.files import whole_file

SPLITS = ("train", "valid", "test")
KINDS = ("strong", "weak", "unlabelled")
LONGEST = 1e9
"""Seconds of a recording."""


class Span(NamedTuple):
    """An event in a recording, from `onset` to `offset` in seconds."""

    event: str
    onset: float
    offset: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One recording; `split` is None until it has one."""

    name: str
    """Its path relative to the source's root, unique there."""
    root: Path
    """The source's."""
    labels: frozenset[str]
    group: str
    """What no split may part: a session, a speaker, an original recording."""
    split: str | None = None
    spans: tuple[Span, ...] | None = None
    """When its events are, where that is known."""
    labelled: bool = True
    """False if what it holds is not known; `labels` is empty then."""

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.root / self.name

    @property
    def kind(self) -> str:
        """How it is labelled: one of `KINDS`."""
        if not self.labelled:
            return "unlabelled"
        return "weak" if self.spans is None else "strong"


_Seconds = Annotated[float, Field(ge=0, le=LONGEST)]


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class _Row:
    """A clip as a line of JSON says it; those of earlier versions have neither spans nor `labelled`."""

    name: str
    labels: tuple[str, ...]
    group: str
    split: Literal["train", "valid", "test"] | None
    spans: tuple[tuple[str, _Seconds, _Seconds], ...] | None = None
    labelled: bool = True


def targets(clips: Sequence[Clip], events: Sequence[str]) -> np.ndarray:
    """1 where a clip holds an event, else 0: float32 [clips, events]; 0 too where a clip is unlabelled."""
    return np.array([[event in clip.labels for event in events] for clip in clips], np.float32).reshape(
        len(clips), len(events)
    )


def divide(
    clips: Sequence[Clip],
    events: Collection[str] = (),
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> list[Clip]:
    """`clips`, each with a split: stratified by their sets of `events`, no group in two splits.

    Without `events` all labels count; unlabelled clips are stratified apart.  Groups go, the
    largest first and else at random, to the split that lacks most of what the group holds
    (iterative stratification after Sechidis et al. 2011, on whole groups).
    """

    @functools.cache  # one set for all clips of the same labels
    def counted(labels: frozenset[str]) -> frozenset[str]:
        return labels.intersection(events) if events else labels

    groups = defaultdict(list)
    for clip in clips:
        groups[clip.group].append(counted(clip.labels) if clip.labelled else None)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda name: -len(groups[name]))
    kinds = Counter(kind for held in groups.values() for kind in held)
    lack = {split: {kind: share * n for kind, n in kinds.items()} for split, share in zip(SPLITS, shares)}
    chosen = {}
    for name in order:
        held = Counter(groups[name])

        def need(split: str, held: Counter[frozenset[str] | None] = held) -> float:
            # A share of what all clips of the kind are, so that rare kinds count like common ones.
            return sum(n * lack[split][kind] / kinds[kind] for kind, n in held.items())

        chosen[name] = max(SPLITS, key=need)
        for kind, n in held.items():
            lack[chosen[name]][kind] -= n
    return [dataclasses.replace(clip, split=chosen[clip.group]) for clip in clips]


def with_splits(clips: Sequence[Clip], events: Collection[str]) -> list[Clip]:
    """`clips` as their source has split them, or divided where it hasn't.

    Raises InputError if clips of one group are in two splits: the one would tell of the other.
    """
    if any(clip.split is None for clip in clips):
        return divide(clips, events)
    first: dict[str, Clip] = {}
    for clip in clips:
        other = first.setdefault(clip.group, clip)
        if other.split != clip.split:
            raise InputError(
                f"data.group_column: expected group {clip.group!r} in one split, found {other.name} in "
                f"{other.split} and {clip.name} in {clip.split}"
            )
    return list(clips)


def summary(clips: Sequence[Clip], events: Sequence[str]) -> str:
    """How many clips each split has, of each kind if they differ, and with each event; and other labels."""
    counts = Counter((clip.split, label) for clip in clips for label in clip.labels)
    kinds = Counter((clip.split, clip.kind) for clip in clips)
    sizes = Counter(clip.split for clip in clips)
    lines = ["recordings: " + ", ".join(f"{sizes[split]} {split}" for split in SPLITS)]
    if any(kind != "weak" for _, kind in kinds):
        for kind in KINDS:
            lines.append(f"  {kind}: " + ", ".join(f"{kinds[split, kind]} {split}" for split in SPLITS))
    for event in events:
        lines.append(
            f"  {printable(event)}: " + ", ".join(f"{counts[split, event]} {split}" for split in SPLITS)
        )
    others = Counter(label for clip in clips for label in clip.labels.difference(events)).most_common()
    if others:
        named = ", ".join(f"{printable(label)} ({count})" for label, count in others[:10])
        more = f" and {len(others) - 10} more" if len(others) > 10 else ""
        lines.append(f"  labels that are no event, so negatives: {named}{more}")
    return "\n".join(lines)


def write_clips(path: Path, clips: Sequence[Clip]) -> None:
    """Keep `clips` in a file, a line of JSON each."""
    with whole_file(path, "w") as file:
        for clip in clips:
            fields = {
                "name": clip.name,
                "labels": sorted(clip.labels),
                "group": clip.group,
                "split": clip.split,
                "spans": clip.spans,
                "labelled": clip.labelled,
            }
            file.write(json.dumps(fields) + "\n")


def read_clip_list(path: Path, root: Path) -> list[Clip]:
    """The clips that `write_clips` kept in `path`, their recordings under `root`; raises InputError."""
    what = f"{path}: expected the list of a run's recordings"
    same: dict[Any, Any] = {}  # of millions of clips few differ in their labels

    def clip(number: int, line: str) -> Clip:
        row = from_json(_Row, line, f"{what}: line {number}")
        name, labels = inside(row.name, f"{what}: line {number}: name"), frozenset(row.labels)
        return Clip(
            name=name,
            root=root,
            labels=same.setdefault(labels, labels),
            group=name if row.group == name else row.group,
            split=same.setdefault(row.split, row.split),
            spans=None if row.spans is None else tuple(Span(*span) for span in row.spans),
            labelled=row.labelled,
        )

    try:
        with open(path, encoding="utf-8") as file:
            return [clip(number, line) for number, line in enumerate(file, 1)]
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{what}: {error}") from None
