"""Logits of a model for whole recordings."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from qkd_jax.config import StepNetwork
from qkd_jax.data.batches import tiled, window_starts
from qkd_jax.data.dataset import Dataset
from qkd_jax.errors import InputError
from qkd_jax.models.build import Model
from qkd_jax.models.common import Logits
from qkd_jax.system.devices import everywhere, on_each, own_rows, spread, whole_rows
from qkd_jax.system.progress import track

Predict = Callable[[Any, np.ndarray], Any]
PredictSteps = Callable[[Any, np.ndarray], Logits]


def make_predict(model: Model) -> Predict:
    """The function (variables, features [batch, frames, mels]) -> logits [batch, events], on all devices."""
    return _on_all_devices(lambda variables, features: model.apply(variables, features))


def make_predict_steps(model: Model) -> PredictSteps:
    """The function (variables, features [batch, frames, mels]) -> `Logits`, on all devices."""
    return _on_all_devices(lambda variables, features: model.apply(variables, features, method="step_logits"))


def _on_all_devices(apply: Callable[[Any, jax.Array], Any]) -> Callable[[Any, np.ndarray], Any]:
    """`apply`, compiled, with rows sharded over all devices; each device gets the whole result."""
    jitted = jax.jit(apply, out_shardings=on_each())

    def call(variables: Any, features: np.ndarray) -> Any:
        count, rows = len(features), whole_rows(len(features))
        if rows > count:
            features = np.resize(features, (rows, *features.shape[1:]))
        logits = jitted(everywhere(variables), spread(features[own_rows(rows)]))
        return jax.tree.map(lambda each: each[:count], logits) if rows > count else logits

    return call


def clip_logits(predict: Predict, variables: Any, data: Dataset, frames: int, batch_size: int) -> np.ndarray:
    """Logits of each clip, float32 [clips, events]: the maximum over windows of `frames` frames.

    Raises InputError that names a clip whose features or logits aren't finite.
    """
    windows = (
        (clip, start) for clip, item in enumerate(data.features) for start in window_starts(len(item), frames)
    )
    starts: np.ndarray = np.fromiter(windows, np.dtype((np.int64, 2)))
    logits = np.full((len(data.names), len(data.events)), -np.inf, np.float32)
    for some, of_windows in _predicted(predict, variables, data, frames, starts, batch_size):
        np.maximum.at(logits, some[:, 0], np.asarray(of_windows)[: len(some)])
    return _finite(logits, data.names)


def step_logits(
    predict: PredictSteps,
    variables: Any,
    data: Dataset,
    frames: int,
    network: StepNetwork,
    batch_size: int = 16,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits of each clip, float32 [clips, events], and of its steps, [steps, events] each.

    A clip is cut into windows of `frames` frames whose steps follow one another.  The last window ends with
    the clip, up to less than one step, and gives the remaining steps.  A shorter clip is `tiled`.  The
    logits of a clip are the maximum over windows.  Raises InputError as `clip_logits` does.
    """
    steps, stride = network.steps(frames), network.stride
    windows = (
        (clip, start)
        for clip, last in enumerate(max(len(item) - frames, 0) // stride * stride for item in data.features)
        for start in (*range(0, last, steps * stride), last)
    )
    starts: np.ndarray = np.fromiter(windows, np.dtype((np.int64, 2)))
    clips = [np.full(len(data.events), -np.inf, np.float32) for _ in data.names]
    by_step = [np.zeros((0, len(data.events)), np.float32) for _ in data.names]
    for some, logits in _predicted(predict, variables, data, frames, starts, batch_size):
        for (clip, start), of_clip, of_steps in zip(some, np.asarray(logits.clip), np.asarray(logits.steps)):
            clips[clip] = np.maximum(clips[clip], of_clip)
            new = of_steps[len(by_step[clip]) - start // stride :]
            by_step[clip] = np.concatenate([by_step[clip], new])
    return _finite(np.stack(clips), data.names), by_step


def _predicted(
    predict: Callable[[Any, np.ndarray], Any],
    variables: Any,
    data: Dataset,
    frames: int,
    starts: np.ndarray,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Batches of `starts` (clip, first frame), and the logits of their windows by `predict`.

    The last batch is padded with zeros, so that `predict` compiles once.
    """
    own = own_rows(whole_rows(batch_size))  # other processes read the other rows
    batches = range(0, len(starts), batch_size)
    for first in track(batches, len(batches), "scores"):
        some = starts[first : first + batch_size]
        batch = np.zeros((batch_size, frames, data.features[0].shape[1]), np.float32)
        for row in range(len(some))[own]:
            clip, start = some[row]
            batch[row] = tiled(data.features[clip][start : start + frames], frames)
        yield some, predict(variables, batch)


def _finite(logits: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """`logits` [clips, events]; raises InputError that names a clip if they aren't finite."""
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{names[int(finite.argmin())]}: expected finite logits, found NaN or infinity: the model has "
            "diverged; try a lower learning rate or --recipe.clip-norm"
        )
    return logits
