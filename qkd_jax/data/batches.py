"""Batches through Grain: the batch of a step is a pure function of (seed, step)."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import grain
import jax
import numpy as np

from qkd_jax.data.dataset import Dataset
from qkd_jax.data.features import finite

Batch = dict[str, np.ndarray]
Batches: TypeAlias = grain.MapDataset


class _Examples:
    """Random access to a data set's examples, as Grain wants it."""

    def __init__(self, data: Dataset, teacher_logits: np.ndarray | None):
        self.data, self.teacher_logits = data, teacher_logits

    def __len__(self) -> int:
        return len(self.data.names)

    def __getitem__(self, index: int) -> Batch:
        example = {"features": self.data.features[index], "labels": self.data.targets[index]}
        if self.teacher_logits is not None:
            example["teacher_logits"] = self.teacher_logits[index]
        return example


def train_batches(
    data: Dataset, teacher_logits: np.ndarray | None, *, frames: int, batch_size: int, seed: int
) -> grain.MapDataset:
    """Endless shuffled batches; `batches[step]` depends on `seed` and `step` alone.

    Of several processes each has its own rows of a batch, as many as the others.  A batch holds `features`
    [batch, frames, mels], of each clip longer than that a part chosen at random, of each shorter one `tiled`
    ones; `labels` [batch, events]; and, where given, `teacher_logits` [batch, events].
    """

    def crop(example: Batch, rng: np.random.Generator) -> Batch:
        start = rng.integers(max(len(example["features"]) - frames, 0) + 1)
        return example | {"features": tiled(example["features"][start : start + frames], frames)}

    examples = grain.MapDataset.source(_Examples(data, teacher_logits)).seed(seed).shuffle().repeat()
    return _batched(examples.random_map(crop), batch_size)


def _batched(examples: grain.MapDataset, size: int) -> Batches:
    """Of batches of `size`, the rows of this process."""
    rows, processes = size // jax.process_count(), slice(jax.process_index(), None, jax.process_count())
    # There is no remainder; without this the number of batches of one clip overflows.
    return examples.batch(rows, drop_remainder=True).slice(processes)


class _Mixed(Sequence[int]):
    """The clips of endless batches, `sizes[k]` of `kinds[k]` in turn, each kind in an order of its own."""

    def __init__(self, kinds: Sequence[np.ndarray], sizes: Sequence[int], seed: int):
        self.sizes = sizes
        self.rows = [(kind, place) for kind, size in enumerate(sizes) for place in range(size)]
        # A seed for each kind, or clips of kinds of one size would always meet.
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
    """Endless batches of `sizes[k]` of the clips `kinds[k]`, kind after kind, as `example` makes them.

    Each kind is shuffled and repeated on its own; `batches[step]` depends on `seed` and `step` alone.
    Of several processes each has its own rows of a batch, as many as the others.
    """
    examples = grain.MapDataset.source(_Mixed(kinds, sizes, seed)).seed(seed).random_map(example)
    return _batched(examples, sum(sizes))


def from_step(batches: grain.MapDataset, step: int) -> grain.IterDataset:
    """`batches[step]`, `batches[step + 1]`, … read ahead by threads."""
    return batches.slice(slice(step, None)).to_iter_dataset(
        grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    )


def window_starts(count: int, frames: int) -> Iterator[int]:
    """Where windows of `frames` frames begin in a clip of `count`; the last ends where the clip ends.

    A clip of fewer frames is one window, to be `tiled`.
    """
    last = max(count - frames, 0)
    yield from range(0, last, frames)
    yield last


def tiled(features: np.ndarray, frames: int) -> np.ndarray:
    """`features` [n, mels] repeated to [frames, mels], not zero-padded: length must not tell the class.

    Raises InputError if they aren't finite.
    """
    return np.resize(finite(features), (frames, features.shape[1]))
