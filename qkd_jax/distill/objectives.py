"""The objectives, as pure functions of logits: of clips (Shi et al. 2019, eq. 1 and 2), and of timed events.

A batch of timed events holds targets per frame, which serve all models.  Each model is compared with them at
its steps: a step stands for the `stride` frames in the middle of its receptive field.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkd_jax.config import StepNetwork
from qkd_jax.models.common import Logits


def weighted_bce(
    logits: Float[Array, "*batch event"],
    targets: Float[Array, "*batch event"],
    positive_weight: Float[Array, " event"] | float = 1.0,
) -> Float[Array, ""]:
    """Eq. 1: -[w_c y log σ(z) + (1 - y) log(1 - σ(z))], the mean over clips and events.

    `targets` are labels or probabilities in [0, 1].  The paper takes the sum; the mean differs by a constant
    factor and makes learning rate and clipping independent of the batch size.

    >>> round(float(weighted_bce(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))), 4)
    0.6931
    """
    return _bce(logits, targets, positive_weight).mean()


def distillation_loss(
    logits: Float[Array, "*batch event"],
    labels: Float[Array, "*batch event"],
    teacher_logits: Float[Array, "*batch event"],
    *,
    alpha: Float[Array, " event"] | float,
    temperature: float,
    positive_weight: Float[Array, " event"] | float = 1.0,
    form: Literal["hinton", "paper"] = "hinton",
    labelled: Float[Array, "*batch"] | None = None,
) -> Float[Array, ""]:
    """Eq. 2: α T² · soft loss + (1 - α) · hard loss, each a `weighted_bce`.

    α in [0, 1] is one number, or one per event: 0 for events without teacher logits.  Clips that aren't
    `labelled` (1 or 0, by default all 1) have the soft loss alone, with α = 1, of the events whose α is above
    0; their other events have no loss.

    Eq. 2 as printed lacks its minus sign and takes the logarithm of logits; both forms correct that.

    - `paper` otherwise follows the equation to the letter: only the teacher is tempered, although T² stays,
      and w_c also weights the soft loss, so that the optimum is not the teacher's probability.
    - `hinton` tempers both sides and leaves the soft loss unweighted (Hinton et al. 2015): at α = 1 the
      optimum is the teacher's logits, and T² keeps the size of the gradient.

    >>> z = jnp.zeros((1, 2))
    >>> round(float(distillation_loss(z, z + 1, z, alpha=0.5, temperature=1.0)), 4)
    0.6931
    """
    soft_targets = jax.nn.sigmoid(teacher_logits / temperature)
    if form == "hinton":
        soft = _bce(logits / temperature, soft_targets)
    elif form == "paper":
        soft = _bce(logits, soft_targets, positive_weight)
    else:
        raise ValueError(f"form: expected 'hinton' or 'paper', got {form!r}")
    hard = _bce(logits, labels, positive_weight)
    share = jnp.broadcast_to(jnp.asarray(alpha, logits.dtype), logits.shape)
    if labelled is None:
        return (share * temperature**2 * soft + (1 - share) * hard).mean()
    has_labels = labelled[..., None] == 1
    soft_share = jnp.where(has_labels, share, share > 0)
    return (soft_share * temperature**2 * soft + jnp.where(has_labels, 1 - share, 0) * hard).mean()


def event_cross_entropy(
    logits: Float[Array, "*batch event"],
    labels: Float[Array, "*batch event"],
    teacher_logits: Float[Array, "*batch event"] | None = None,
    *,
    alpha: float = 0.0,
    temperature: float = 1.0,
    labelled: Float[Array, "*batch"] | None = None,
) -> Float[Array, ""]:
    """Softmax cross-entropy -Σ t_c log softmax(z)_c of clips that hold one event each, the mean over clips.

    The target t is (1 - α) · labels + α · the teacher's posteriors σ(z_t/T), each divided by its sum over
    events, since clips and labels may be mixed.  Clips that aren't `labelled` (1 or 0, by default all 1)
    learn from the teacher alone, and without a teacher not at all.

    >>> one = jnp.array([[0.0, 1.0]])
    >>> round(float(event_cross_entropy(jnp.zeros((1, 2)), one)), 4)
    0.6931
    """

    def shares(x: jax.Array) -> jax.Array:
        total = x.sum(axis=-1, keepdims=True)
        return jnp.where(total > 0, x / jnp.where(total > 0, total, 1), 0)

    known = 1.0 if labelled is None else labelled[..., None]
    targets = known * shares(labels)
    if teacher_logits is not None:
        soft = jnp.where(known == 1, alpha, 1.0)
        targets = (1 - soft) * targets + soft * shares(jax.nn.sigmoid(teacher_logits / temperature))
    return -(targets * jax.nn.log_softmax(logits)).sum(axis=-1).mean()


def class_loss(
    logits: Float[Array, "*batch class"], posteriors: Float[Array, "*batch class"]
) -> Float[Array, ""]:
    """Kullback-Leibler divergence from a tagger's `posteriors`, in (0, 1), to those of the `logits`.

    It is the sum over classes, since most are absent from most clips, and the mean over clips.

    >>> round(float(class_loss(jnp.zeros((1, 2)), jnp.array([[0.5, 0.9]]))), 4)
    0.3681
    """
    own = jax.scipy.special.logit(posteriors)
    return (_bce(logits, posteriors) - _bce(own, posteriors)).sum(axis=-1).mean()


def positive_weights(
    targets: np.ndarray,
    rule: Literal["negatives/positives", "positives/negatives"] | float = "negatives/positives",
) -> np.ndarray:
    """w_c of eq. 1 for each event, float32 [events], from training `targets` [clips, events].

    The text says "the ratio between positive and negative examples", which would weaken rare positives
    further; its stated aim is balance, hence the default.  Raises ValueError if an event has no positive or
    no negative clip.

    >>> positive_weights(np.array([[1.0], [0.0], [0.0]]))
    array([2.], dtype=float32)
    """
    positives = targets.sum(axis=0, dtype=np.float64)
    negatives = len(targets) - positives
    if not (positives.all() and negatives.all()):
        raise ValueError(f"expected positive and negative clips of each event, got {positives} positive")
    if rule == "negatives/positives":
        return (negatives / positives).astype(np.float32)
    if rule == "positives/negatives":
        return (positives / negatives).astype(np.float32)
    return np.full(targets.shape[1], rule, np.float32)


def ramp_up(progress: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """exp(-5 (1 - s/S)²) for `progress` s/S in [0, 1], 1 beyond: for learning rate and consistency."""
    return jnp.exp(-5 * jnp.square(1 - jnp.clip(progress, 0, 1)))


def label_loss(logits: Logits, batch: Mapping[str, jax.Array], network: StepNetwork) -> Float[Array, ""]:
    """Binary cross-entropy of the steps of strongly labelled clips, plus that of weakly labelled clips.

    `batch` holds `strong` [batch, frames, event], `weak` [batch, event], and `has_strong` and `has_weak`
    [batch], 1 where these are known; each term is the mean over the clips that have it, 0 without any.
    A step holds an event if one of its frames does.
    """
    strong = by_step(batch["strong"], network, logits.steps.shape[1]).max(axis=2)
    return _known_bce(logits.steps, strong, batch["has_strong"]) + _known_bce(
        logits.clip, batch["weak"], batch["has_weak"]
    )


def teacher_loss(logits: Logits, batch: Mapping[str, jax.Array], network: StepNetwork) -> Float[Array, ""]:
    """Binary cross-entropy against the teachers' posteriors, of steps plus of clips, over the whole batch.

    `batch` holds these as `teacher` [batch, frames, event] and `teacher_clip` [batch, event].
    """
    targets = by_step(batch["teacher"], network, logits.steps.shape[1]).mean(axis=2)
    return _bce(logits.steps, targets).mean() + _bce(logits.clip, batch["teacher_clip"]).mean()


def consistency_loss(logits: Logits, mean_teacher: Logits) -> Float[Array, ""]:
    """Mean squared distance to the mean teacher's posteriors, of steps plus of clips."""

    def distance(ours: jax.Array, theirs: jax.Array) -> jax.Array:
        return jnp.square(jax.nn.sigmoid(ours) - jax.lax.stop_gradient(jax.nn.sigmoid(theirs))).mean()

    return distance(logits.steps, mean_teacher.steps) + distance(logits.clip, mean_teacher.clip)


def by_step(
    x: Float[Array, "batch frames event"], network: StepNetwork, steps: int
) -> Float[Array, "batch step stride event"]:
    """The frames that each step stands for: `stride` frames in the middle of its receptive field."""
    first = (network.receptive_field - network.stride) // 2
    middle = x[:, first : first + steps * network.stride]
    return middle.reshape(x.shape[0], steps, network.stride, x.shape[-1])


def step_of_frame(receptive_field: int, stride: int, *, steps: int, frames: int) -> np.ndarray:
    """The step that stands for each frame, int [frames]; frames beyond all steps take the nearest."""
    return np.clip((np.arange(frames) - (receptive_field - stride) // 2) // stride, 0, steps - 1)


def fuse(
    logits: Float[np.ndarray, "teacher *batch event"],
    weights: Float[np.ndarray, "teacher event"] | None,
    temperature: float = 1.0,
) -> Float[np.ndarray, "*batch event"]:
    """Posteriors of several teachers combined: the mean of σ(z/T), weighted for each event.

    `weights` sum to 1 over teachers; without them, it is the posterior of the teachers' mean logit.
    """
    if weights is None:
        return _sigmoid(logits.mean(axis=0) / temperature)
    return np.einsum("t...e,te->...e", _sigmoid(logits / temperature), weights)


def fusion_weights(rule: str, precision: Float[np.ndarray, "teacher event"]) -> np.ndarray | None:
    """Weights of teachers for each event, [teacher, event], from their average precision on validation.

    `precision` is its softmax over teachers; `best` the best teacher alone; `uniform` equal weights; `logits`
    None, for which `fuse` averages logits.  Fu et al. (2019) give no rule; these are our interpretations.
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


def _bce(logits: jax.Array, targets: jax.Array, positive_weight: jax.Array | float = 1.0) -> jax.Array:
    weight = jnp.broadcast_to(jnp.asarray(positive_weight, logits.dtype), logits.shape)
    return weight * targets * jax.nn.softplus(-logits) + (1 - targets) * jax.nn.softplus(logits)


def _known_bce(logits: jax.Array, targets: jax.Array, known: jax.Array) -> jax.Array:
    """The mean over the clips that are `known` (1 or 0, [batch])."""
    by_clip = _bce(logits, targets).mean(axis=tuple(range(1, logits.ndim)))
    return (known * by_clip).sum() / jnp.maximum(known.sum(), 1)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
