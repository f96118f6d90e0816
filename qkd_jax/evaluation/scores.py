"""Logits of a model for whole recordings."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qkd_jax.data.batches import windows
from qkd_jax.data.dataset import Dataset
from qkd_jax.models.build import Model
from qkd_jax.progress import track

Predict = Callable[[Any, np.ndarray], jax.Array]


def make_predict(model: Model) -> Predict:
    """The jitted function (variables, features [batch, frames, mels]) -> logits [batch, events]."""
    return jax.jit(lambda variables, features: model.apply(variables, features))


def clip_logits(
    predict: Predict,
    variables: Any,
    data: Dataset,
    frames: int,
    batch_size: int,
) -> np.ndarray:
    """Logits of each clip, float32 [clips, events]: the maximum over windows of `frames` frames.

    Every batch has one shape, the last one filled up with zeros, so `predict` compiles once.
    """
    owners = np.concatenate(
        [np.full(-(-len(item) // frames), clip) for clip, item in enumerate(data.features)]
    )
    logits = np.full((len(data.names), len(data.events)), -np.inf, np.float32)
    pieces = (window for item in data.features for window in windows(item, frames))
    for start in track(range(0, len(owners), batch_size), -(-len(owners) // batch_size), "scores"):
        owner = owners[start : start + batch_size]
        batch = np.zeros((batch_size, frames, data.features[0].shape[1]), np.float32)
        for row in range(len(owner)):
            batch[row] = next(pieces)
        np.maximum.at(logits, owner, np.asarray(predict(variables, batch))[: len(owner)])
    return logits
