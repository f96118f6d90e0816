"""A recording with labels, dividing recordings into splits, and lists of them in a file."""

import dataclasses
import json
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qkd_jax.config import InputError
from qkd_jax.files import whole_file

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One recording; `split` is None until it has one."""

    name: str
    """Its path relative to the source's root, unique there."""
    path: Path
    labels: frozenset[str]
    group: str
    """What no split may part: a session, a speaker, an original recording."""
    split: str | None = None


def targets(clips: Sequence[Clip], events: Sequence[str]) -> np.ndarray:
    """1 where a clip holds an event, else 0: float32 [clips, events]."""
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

    Without `events` all labels count.  Groups go, the largest first and else at random, to the
    split that lacks most of what the group holds (iterative stratification after Sechidis et al.
    2011, on whole groups).
    """
    groups = defaultdict(list)
    for clip in clips:
        groups[clip.group].append(clip.labels.intersection(events) if events else clip.labels)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda name: -len(groups[name]))
    kinds = Counter(kind for held in groups.values() for kind in held)
    lack = {split: {kind: share * n for kind, n in kinds.items()} for split, share in zip(SPLITS, shares)}
    chosen = {}
    for name in order:
        held = Counter(groups[name])

        def need(split: str, held: Counter[frozenset[str]] = held) -> float:
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
    """How many clips each split has, and each event in it; and the labels that are no event."""
    counts = Counter((clip.split, label) for clip in clips for label in clip.labels)
    sizes = Counter(clip.split for clip in clips)
    lines = ["recordings: " + ", ".join(f"{sizes[split]} {split}" for split in SPLITS)]
    for event in events:
        lines.append(f"  {event}: " + ", ".join(f"{counts[split, event]} {split}" for split in SPLITS))
    others = Counter(label for clip in clips for label in clip.labels.difference(events)).most_common()
    if others:
        named = ", ".join(f"{label} ({count})" for label, count in others[:10])
        more = f" and {len(others) - 10} more" if len(others) > 10 else ""
        lines.append(f"  labels that are no event, so negatives: {named}{more}")
    return "\n".join(lines)


def write_clips(path: Path, clips: Sequence[Clip]) -> None:
    """Keep `clips` in a file, a line of JSON each."""
    with whole_file(path, "w") as file:
        for clip in clips:
            fields = {"name": clip.name, "labels": sorted(clip.labels), "group": clip.group}
            file.write(json.dumps(fields | {"split": clip.split}) + "\n")


def read_clip_list(path: Path, root: Path) -> list[Clip]:
    """The clips that `write_clips` kept in `path`, their recordings under `root`; raises InputError."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        known = [{"path": root / row["name"], "labels": frozenset(row["labels"])} for row in rows]
        return [Clip(**row | fields) for row, fields in zip(rows, known)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected the list of a run's recordings: {error}") from None
