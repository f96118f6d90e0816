"""Logits of a model for whole recordings."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from qkd_jax.config import CRNNConfig, LSTMConfig
from qkd_jax.data.batches import tiled, window_starts
from qkd_jax.data.dataset import Dataset
from qkd_jax.data.timed import SedDataset
from qkd_jax.errors import InputError
from qkd_jax.models.build import Model
from qkd_jax.models.common import Logits
from qkd_jax.system.devices import everywhere, on_each, own_rows, spread, whole_rows
from qkd_jax.system.progress import track

Detect = Callable[[Any, np.ndarray], Logits]
Predict = Callable[[Any, np.ndarray], Any]


def make_predict(model: Model) -> Predict:
    """The function (variables, features [batch, frames, mels]) -> logits [batch, events], on all devices."""
    return _over_devices(lambda variables, features: model.apply(variables, features))


def clip_logits(
    predict: Predict,
    variables: Any,
    data: Dataset,
    frames: int,
    batch_size: int,
) -> np.ndarray:
    """Logits of each clip, float32 [clips, events]: the maximum over windows of `frames` frames.

    Every batch has one shape, the last one filled up with zeros, so `predict` compiles once.
    Raises InputError that names a clip whose features or logits aren't finite.
    """
    every = (
        (clip, start) for clip, item in enumerate(data.features) for start in window_starts(len(item), frames)
    )
    windows: np.ndarray = np.fromiter(every, np.dtype((np.int64, 2)))
    logits = np.full((len(data.names), len(data.events)), -np.inf, np.float32)
    own = own_rows(whole_rows(batch_size))  # others read theirs
    for first in track(range(0, len(windows), batch_size), -(-len(windows) // batch_size), "scores"):
        some = windows[first : first + batch_size]
        batch = np.zeros((batch_size, frames, data.features[0].shape[1]), np.float32)
        for row in range(len(some))[own]:
            clip, start = some[row]
            batch[row] = tiled(data.features[clip][start : start + frames], frames)
        np.maximum.at(logits, some[:, 0], np.asarray(predict(variables, batch))[: len(some)])
    return _finite(logits, data.names)


def make_detect(model: Model) -> Detect:
    """The function (variables, features [batch, frames, mels]) -> `Logits`, on all devices."""
    return _over_devices(lambda variables, features: model.apply(variables, features, method="step_logits"))


def _over_devices(apply: Callable[[Any, jax.Array], Any]) -> Callable[[Any, np.ndarray], Any]:
    """`apply`, jitted, of rows over all devices; what it gives is on each of them."""
    jitted = jax.jit(apply, out_shardings=on_each())

    def call(variables: Any, features: np.ndarray) -> Any:
        count, rows = len(features), whole_rows(len(features))
        if rows > count:
            features = np.resize(features, (rows, *features.shape[1:]))
        found = jitted(everywhere(variables), spread(features[own_rows(rows)]))
        return jax.tree.map(lambda each: each[:count], found) if rows > count else found

    return call


def step_logits(
    detect: Detect,
    variables: Any,
    data: SedDataset,
    frames: int,
    network: CRNNConfig | LSTMConfig,
    batch_size: int = 16,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits of each clip, float32 [clips, events], and of its steps, [steps, events] each.

    A clip is cut into windows of `frames` frames whose steps follow one another; the last one ends with the
    clip, but for less than a step, and gives the steps that are still lacking.  A shorter clip is `tiled`.  A
    clip's own logits are their maximum.  Raises InputError as `clip_logits` does.
    """
    steps, (_, hop) = network.steps(frames), network.span
    found = [np.full(len(data.events), -np.inf, np.float32) for _ in data.names]
    by_step = [np.zeros((0, len(data.events)), np.float32) for _ in data.names]
    starts = [
        (clip, start)
        for clip, last in enumerate(max(len(item) - frames, 0) // hop * hop for item in data.features)
        for start in (*range(0, last, steps * hop), last)
    ]
    own = own_rows(whole_rows(batch_size))
    for begin in track(range(0, len(starts), batch_size), -(-len(starts) // batch_size), "scores"):
        some = starts[begin : begin + batch_size]
        batch = np.zeros((batch_size, frames, data.features[0].shape[1]), np.float32)
        for row in range(len(some))[own]:
            clip, start = some[row]
            batch[row] = tiled(data.features[clip][start : start + frames], frames)
        said = detect(variables, batch)
        for (clip, start), logits, over_time in zip(some, np.asarray(said.clip), np.asarray(said.steps)):
            found[clip] = np.maximum(found[clip], logits)
            new = over_time[len(by_step[clip]) - start // hop :]
            by_step[clip] = np.concatenate([by_step[clip], new])
    return _finite(np.stack(found), data.names), by_step


def _finite(logits: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """`logits` [clips, events]; raises InputError that names a clip if they aren't finite."""
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{names[int(finite.argmin())]}: expected finite logits, found NaN or infinity: the model has "
            "diverged; try a lower learning_rate or train.clip_norm"
        )
    return logits
