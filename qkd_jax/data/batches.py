"""Batches through Grain: the batch of a step is a pure function of (seed, step)."""

from collections.abc import Iterator

import grain
import numpy as np

from qkd_jax.data.dataset import Dataset

Batch = dict[str, np.ndarray]


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

    A batch holds `features` [batch, frames, mels], of each clip longer than that a part chosen at
    random, of each shorter one `tiled` ones; `labels` [batch, events]; and, where given,
    `teacher_logits` [batch, events].
    """

    def crop(example: Batch, rng: np.random.Generator) -> Batch:
        start = rng.integers(max(len(example["features"]) - frames, 0) + 1)
        return example | {"features": tiled(example["features"][start : start + frames], frames)}

    return (
        grain.MapDataset.source(_Examples(data, teacher_logits))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(crop)
        .batch(batch_size)
    )


def from_step(batches: grain.MapDataset, step: int) -> grain.IterDataset:
    """`batches[step]`, `batches[step + 1]`, … read ahead by threads."""
    return batches.slice(slice(step, None)).to_iter_dataset(
        grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    )


def windows(features: np.ndarray, frames: int) -> Iterator[np.ndarray]:
    """`features` [n, mels] cut into windows [frames, mels]; the last ends where the clip ends.

    A clip of fewer frames is one window, `tiled`.
    """
    last = max(len(features) - frames, 0)
    for start in (*range(0, last, frames), last):
        yield tiled(features[start : start + frames], frames)


def tiled(features: np.ndarray, frames: int) -> np.ndarray:
    """`features` [n, mels] repeated to [frames, mels], not zero-padded: length must not tell the class."""
    return np.resize(features, (frames, features.shape[1]))
