"""The objectives: eq. 1 and eq. 2 of Shi et al. 2019, as pure functions of logits."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def weighted_bce(
    logits: Float[Array, "*batch event"],
    targets: Float[Array, "*batch event"],
    positive_weight: Float[Array, " event"] | float = 1.0,
) -> Float[Array, ""]:
    """Eq. 1: -[w_c y log σ(z) + (1 - y) log(1 - σ(z))], the mean over clips and events.

    `targets` are labels or probabilities in [0, 1].  The paper sums; the mean differs by a
    constant factor and makes learning rate and clipping independent of the batch size.
    """
    return _bce(logits, targets, positive_weight).mean()


def _bce(logits: jax.Array, targets: jax.Array, positive_weight: jax.Array | float = 1.0) -> jax.Array:
    weight = jnp.broadcast_to(positive_weight, logits.shape)
    return weight * targets * jax.nn.softplus(-logits) + (1 - targets) * jax.nn.softplus(logits)


def distillation_loss(
    logits: Float[Array, "*batch event"],
    labels: Float[Array, "*batch event"],
    teacher_logits: Float[Array, "*batch event"],
    *,
    alpha: Float[Array, " event"] | float,
    temperature: float,
    positive_weight: Float[Array, " event"] | float = 1.0,
    form: Literal["hinton", "paper"] = "hinton",
) -> Float[Array, ""]:
    """Eq. 2: α T² l(soft) + (1 - α) l(labels), l being `weighted_bce`.

    α in [0, 1] is one number or one for each event: 0 for those that the teacher doesn't know.

    Eq. 2 as printed lacks its minus sign and takes the logarithm of logits; both forms mend that.

    `paper`: the rest to the letter.  Only the teacher is tempered, though T² stays, and w_c
    weighs the soft term too, so that the optimum is not at the teacher's probability.
    `hinton`: both sides are tempered and the soft term is unweighted (Hinton et al. 2015): at
    α = 1 the optimum is the teacher's logits themselves, and T² keeps the gradient's size.
    """
    soft = jax.nn.sigmoid(teacher_logits / temperature)
    if form == "hinton":
        taught = _bce(logits / temperature, soft)
    elif form == "paper":
        taught = _bce(logits, soft, positive_weight)
    else:
        raise ValueError(f"form: expected 'hinton' or 'paper', got {form!r}")
    told = _bce(logits, labels, positive_weight)
    share = jnp.broadcast_to(alpha, logits.shape)
    return (share * temperature**2 * taught + (1 - share) * told).mean()


def positive_weights(
    targets: np.ndarray,
    rule: Literal["negatives/positives", "positives/negatives"] | float = "negatives/positives",
) -> np.ndarray:
    """w_c of eq. 1 for each event, float32 [events], from training `targets` [clips, events].

    The text says "the ratio between positive and negative examples", which would weaken rare
    positives still more; its stated aim is balance, hence the default.  Raises ValueError if
    an event has no positive or no negative clip.
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
