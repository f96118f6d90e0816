"""A recording with labels, and dividing recordings into splits.

A source is a function that returns a list of `Clip`; nothing else has to know of it.
"""

import dataclasses
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One recording; `name` is unique in its source, `split` is None until it has one."""

    name: str
    path: Path
    labels: frozenset[str]
    group: str
    split: str | None = None


def targets(clips: Sequence[Clip], events: Sequence[str]) -> np.ndarray:
    """1 where a clip holds an event, else 0: float32 [clips, events]."""
    return np.array([[event in clip.labels for event in events] for clip in clips], np.float32).reshape(
        len(clips), len(events)
    )


def divide(
    clips: Sequence[Clip], shares: tuple[float, float, float] = (0.7, 0.1, 0.2), seed: int = 0
) -> list[Clip]:
    """`clips`, each with a split: stratified by their sets of labels, no group in two splits.

    Groups go, the largest first and else at random, to the split that lacks most of what the
    group holds (iterative stratification after Sechidis et al. 2011, on whole groups).
    """
    groups = defaultdict(list)
    for clip in clips:
        groups[clip.group].append(clip)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda name: -len(groups[name]))
    kinds = Counter(clip.labels for clip in clips)
    lack = {split: {kind: share * n for kind, n in kinds.items()} for split, share in zip(SPLITS, shares)}
    chosen = {}
    for name in order:
        held = Counter(clip.labels for clip in groups[name])

        def need(split: str, held: Counter[frozenset[str]] = held) -> float:
            # A share of what all clips of the kind are, so that rare kinds count like common ones.
            return sum(n * lack[split][kind] / kinds[kind] for kind, n in held.items())

        chosen[name] = max(SPLITS, key=need)
        for kind, n in held.items():
            lack[chosen[name]][kind] -= n
    return [dataclasses.replace(clip, split=chosen[clip.group]) for clip in clips]
