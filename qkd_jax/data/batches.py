"""Batches through Grain: the batch of a step is a pure function of (seed, step)."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grain
import jax
import numpy as np

from qkd_jax.config import FeatureConfig
from qkd_jax.data.clips import KINDS, NOUNS
from qkd_jax.data.dataset import Dataset, frame_targets
from qkd_jax.data.features import finite
from qkd_jax.errors import InputError

Batch = dict[str, np.ndarray]
Batches: TypeAlias = grain.MapDataset


class _Examples:
    """Random access to a data set's examples, in the form that Grain needs."""

    def __init__(self, data: Dataset, targets: Mapping[str, np.ndarray], unlabelled: bool):
        self.data, self.targets = data, targets
        self.clips = np.arange(len(data.names)) if unlabelled else data.labelled
        self.labelled: np.ndarray = data.kind != KINDS.index("unlabelled")
        self.unlabelled = len(self.clips) > len(data.labelled)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Batch:
        clip = self.clips[index]
        example = {"features": self.data.features[clip], "labels": self.data.targets[clip]}
        example |= {name: array[clip].astype(np.float32) for name, array in self.targets.items()}
        if self.unlabelled:
            example["labelled"] = np.float32(self.labelled[clip])
        return example


def clip_batches(
    data: Dataset,
    teacher_logits: np.ndarray | None,
    *,
    frames: int,
    batch_size: int,
    seed: int,
    unlabelled: bool = False,
    classes: np.ndarray | None = None,
) -> Batches:
    """Endless shuffled batches; `batches[step]` depends on `seed` and `step` alone.

    A batch holds `features` [batch, frames, mels], a random part of each longer clip, each shorter one
    `tiled`; `labels` [batch, events]; and, if given, `teacher_logits` [batch, events] and `classes`,
    posteriors [batch, classes].  With `unlabelled`, unlabelled clips are shuffled among the others, and
    `labelled` [batch] is 0 for them and 1 for others; it is missing if there are none.  With several
    processes, each gets an equal share of a batch's rows.
    """

    def crop(example: Batch, rng: np.random.Generator) -> Batch:
        start = rng.integers(max(len(example["features"]) - frames, 0) + 1)
        return example | {"features": tiled(example["features"][start : start + frames], frames)}

    targets = {"teacher_logits": teacher_logits, "classes": classes}
    given = {name: array for name, array in targets.items() if array is not None}
    examples = grain.MapDataset.source(_Examples(data, given, unlabelled)).seed(seed).shuffle().repeat()
    return _batched(examples.random_map(crop), batch_size)


@dataclass(frozen=True)
class StepTargets:
    """The teachers' posteriors for the training clips.

    `steps` [clips, steps, events], where `step_of_frame[f]` is the step of frame f of a clip (or tiled clip),
    and `clip` [clips, events] for whole clips.
    """

    steps: np.ndarray
    clip: np.ndarray
    step_of_frame: np.ndarray


@dataclass(frozen=True)
class EmbeddingTargets:
    """Embeddings [clips, rows, size] of clips no longer than the input; step t has row `row_of_step[t]`."""

    rows: np.ndarray
    row_of_step: np.ndarray


def timed_batches(
    data: Dataset,
    features: FeatureConfig,
    *,
    frames: int,
    sizes: tuple[int, int, int],
    seed: int,
    stride: int = 1,
    teacher: StepTargets | None = None,
    embeddings: EmbeddingTargets | None = None,
) -> Batches:
    """Endless batches of `sizes` strong, weak and unlabelled clips, in this order.

    `batches[step]` depends on `seed` and `step` alone.  Each kind is shuffled and repeated separately.  With
    several processes, each gets an equal share of a batch's rows.  A batch holds, all float32:

    - `features` [batch, frames, mels]: a part of each longer clip that begins at a random multiple of
      `stride`, each shorter one `tiled`;
    - `strong` [batch, frames, events]: the frames' targets, zeros where they are unknown;
    - `weak` [batch, events]: the clips' targets (for strong clips, those of the part), zeros where unknown;
    - `has_strong`, `has_weak` [batch]: 1 for strong clips, and 1 for weak ones;
    - with `teacher`, `teacher` [batch, frames, events] and `teacher_clip` [batch, events]: the posteriors;
    - with `embeddings`, `embedding` [batch, steps, size].

    Raises InputError if a kind has fewer clips than a batch needs, and, when read, ValueError if
    `teacher.step_of_frame` is shorter than a part of a clip reaches.
    """
    indices = [data.indices(kind) for kind in KINDS]
    for kind, clips, size in zip(KINDS, indices, sizes):
        if len(clips) < size:
            raise InputError(
                f"--recipe.{kind}: expected at most {len(clips)} ({NOUNS[kind]} training clips), got {size}"
            )

    def example(clip: int, rng: np.random.Generator) -> Batch:
        log_mel, kind = data.features[clip], KINDS[data.kind[clip]]
        start = stride * rng.integers(max(len(log_mel) - frames, 0) // stride + 1)
        part = slice(start, start + frames)
        targets = frame_targets(data.annotations[clip], data.events, len(log_mel), features)
        strong = tiled(targets[part], frames)
        batch = {
            "features": tiled(log_mel[part], frames),
            "strong": strong,
            "weak": strong.max(axis=0) if kind == "strong" else data.targets[clip],
            "has_strong": np.float32(kind == "strong"),
            "has_weak": np.float32(kind == "weak"),
        }
        if teacher is not None:
            if len(teacher.step_of_frame) < part.stop:
                raise ValueError(
                    f"step_of_frame: expected the steps of {part.stop} frames, "
                    f"got {len(teacher.step_of_frame)}"
                )
            batch["teacher"] = teacher.steps[clip][teacher.step_of_frame[part]]
            batch["teacher_clip"] = teacher.clip[clip]
        if embeddings is not None:
            batch["embedding"] = embeddings.rows[clip][embeddings.row_of_step].astype(np.float32)
        return batch

    return mixed_batches(indices, sizes, example, seed=seed)


class _Mixed(Sequence[int]):
    """The clips of endless batches: `sizes[k]` of `kinds[k]` in turn, each kind shuffled separately."""

    def __init__(self, kinds: Sequence[np.ndarray], sizes: Sequence[int], seed: int):
        self.sizes = sizes
        self.rows = [(kind, place) for kind, size in enumerate(sizes) for place in range(size)]
        # One seed for each kind; with a common seed, kinds of equal size would always pair the same clips.
        self.orders = [
            grain.MapDataset.source(clips).seed(len(kinds) * seed + kind).shuffle().repeat()
            for kind, clips in enumerate(kinds)
        ]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index):
        step, row = divmod(index, len(self.rows))
        kind, place = self.rows[row]
        return int(self.orders[kind][step * self.sizes[kind] + place])


def mixed_batches(
    kinds: Sequence[np.ndarray],
    sizes: Sequence[int],
    example: Callable[[int, np.random.Generator], Batch],
    *,
    seed: int,
) -> Batches:
    """Endless batches of `sizes[k]` clips from `kinds[k]`, one kind after the other, made by `example`.

    Each kind is shuffled and repeated separately; `batches[step]` depends on `seed` and `step` alone.
    """
    examples = grain.MapDataset.source(_Mixed(kinds, sizes, seed)).seed(seed).random_map(example)
    return _batched(examples, sum(sizes))


def _batched(examples: grain.MapDataset, size: int) -> Batches:
    """Batches of `size`, of which this process gets its rows."""
    rows, processes = size // jax.process_count(), slice(jax.process_index(), None, jax.process_count())
    # There is no remainder, but without the flag the number of batches of a single clip overflows.
    return examples.batch(rows, drop_remainder=True).slice(processes)


def from_step(batches: Batches, step: int) -> grain.IterDataset:
    """`batches[step]`, `batches[step + 1]`, … read ahead by threads."""
    return batches.slice(slice(step, None)).to_iter_dataset(
        grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    )


def window_starts(count: int, frames: int) -> Iterator[int]:
    """Starts of windows of `frames` frames in a clip of `count`; the last window ends with the clip.

    A clip of fewer frames is one window, to be `tiled`.

    >>> list(window_starts(25, 10))
    [0, 10, 15]
    """
    last = max(count - frames, 0)
    yield from range(0, last, frames)
    yield last


def tiled(features: np.ndarray, frames: int) -> np.ndarray:
    """`features` [n, mels] repeated to [frames, mels]; zero-padding would let the length reveal the class.

    Raises InputError if they aren't finite.
    """
    return np.resize(finite(features), (frames, features.shape[1]))
