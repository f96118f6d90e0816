"""The objectives of sound event detection, as pure functions of what a model says of steps and clips.

A batch holds its targets on the grid of feature frames, which all models share; a model whose step joins
`hop` of the `read` frames that it sees (`span` of its settings) compares them on its own.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkd_jax.models.common import Logits

Span = tuple[int, int]


def steepness(progress: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """exp(-5 (1 - s/S)²) for `progress` s/S in [0, 1], 1 beyond: how learning rate and consistency rise."""
    return jnp.exp(-5 * jnp.square(1 - jnp.clip(progress, 0, 1)))


def label_loss(found: Logits, batch: Mapping[str, jax.Array], span: Span) -> Float[Array, ""]:
    """Binary cross-entropy of the steps of strongly labelled clips, plus that of weakly labelled clips.

    `batch` holds `strong` [batch, frames, event], `weak` [batch, event], and `has_strong` and `has_weak`
    [batch], 1 where these are known; each term is the mean over the clips that have it, 0 without any.
    A step holds an event if one of its frames does.
    """
    strong = by_step(batch["strong"], span, found.steps.shape[1]).max(axis=2)
    return _known_bce(found.steps, strong, batch["has_strong"]) + _known_bce(
        found.clip, batch["weak"], batch["has_weak"]
    )


def teacher_loss(found: Logits, batch: Mapping[str, jax.Array], span: Span) -> Float[Array, ""]:
    """Binary cross-entropy against the teachers' probabilities, of steps plus of clips, over the whole batch.

    `batch` holds these as `teacher` [batch, frames, event] and `teacher_clip` [batch, event].
    """
    frames = by_step(batch["teacher"], span, found.steps.shape[1]).mean(axis=2)
    return _bce(found.steps, frames).mean() + _bce(found.clip, batch["teacher_clip"]).mean()


def consistency_loss(found: Logits, mean: Logits) -> Float[Array, ""]:
    """Mean squared distance of probabilities to those of the `mean` student, of steps plus of clips."""

    def distance(ours: jax.Array, theirs: jax.Array) -> jax.Array:
        return jnp.square(jax.nn.sigmoid(ours) - jax.lax.stop_gradient(jax.nn.sigmoid(theirs))).mean()

    return distance(found.steps, mean.steps) + distance(found.clip, mean.clip)


def by_step(
    x: Float[Array, "batch frames event"], span: Span, steps: int
) -> Float[Array, "batch step hop event"]:
    """The frames in the middle of what each of `steps` steps reads, `hop` of them."""
    read, hop = span
    first = (read - hop) // 2
    return x[:, first : first + steps * hop].reshape(x.shape[0], steps, hop, x.shape[-1])


def step_of_frames(span: Span, steps: int, frames: int) -> np.ndarray:
    """The step that stands for each frame, int [frames]; beyond them the first and the last."""
    read, hop = span
    return np.clip((np.arange(frames) - (read - hop) // 2) // hop, 0, steps - 1)


def fuse(
    logits: Float[np.ndarray, "teacher *batch event"],
    weights: Float[np.ndarray, "teacher event"] | None,
    temperature: float = 1.0,
) -> Float[np.ndarray, "*batch event"]:
    """Probabilities that several teachers give together: the mean of theirs, σ(z/T), weighed for each event.

    Without `weights` (which sum to 1 over teachers) it is the probability of their mean logit.
    """
    if weights is None:
        return _sigmoid(logits.mean(axis=0) / temperature)
    return np.einsum("t...e,te->...e", _sigmoid(logits / temperature), weights)


def fusion_weights(rule: str, precision: Float[np.ndarray, "teacher event"]) -> np.ndarray | None:
    """Weights of teachers for each event, [teacher, event], by their average precision on validation.

    `precision`: its softmax over teachers; `best`: the best alone; `uniform`: all alike; None for `logits`,
    which `fuse` takes the mean of.  Fu et al. 2019 don't say; these are readings.
    """
    if rule == "logits":
        return None
    if rule == "uniform":
        return np.full_like(precision, 1 / len(precision))
    if rule == "best":
        return (precision.argmax(axis=0) == np.arange(len(precision))[:, None]).astype(precision.dtype)
    if rule != "precision":
        raise ValueError(f"rule: expected precision, uniform, best or logits, got {rule!r}")
    share = np.exp(precision - precision.max(axis=0))
    return share / share.sum(axis=0)


def _known_bce(logits: jax.Array, targets: jax.Array, known: jax.Array) -> jax.Array:
    """The mean over the clips that are `known` (1 or 0, [batch])."""
    by_clip = _bce(logits, targets).mean(axis=tuple(range(1, logits.ndim)))
    return (known * by_clip).sum() / jnp.maximum(known.sum(), 1)


def _bce(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return targets * jax.nn.softplus(-logits) + (1 - targets) * jax.nn.softplus(logits)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
