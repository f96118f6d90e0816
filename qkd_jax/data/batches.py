"""Batches through Grain: the batch of a step is a pure function of (seed, step)."""

import grain
import numpy as np

from qkd_jax.data.features import Dataset

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

    A batch holds `features` [batch, frames, mels], each clip cropped at random, `labels`
    [batch, events] and, where given, `teacher_logits` [batch, events].
    """

    def crop(example: Batch, rng: np.random.Generator) -> Batch:
        start = rng.integers(len(example["features"]) - frames + 1)
        return example | {"features": example["features"][start : start + frames]}

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


def windows(features: np.ndarray, frames: int) -> np.ndarray:
    """`features` [n, mels] cut into windows [count, frames, mels]; the last ends where the clip ends."""
    starts = [*range(0, len(features) - frames, frames), len(features) - frames]
    return np.stack([features[start : start + frames] for start in starts])
