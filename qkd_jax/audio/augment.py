"""Random changes to a batch of log-mel energies, pure in their keys; each clip has its own draw."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from qkd_jax.config import AugmentConfig


def augment(
    key: PRNGKeyArray,
    features: Float[Array, "batch frames mel"],
    labels: Float[Array, "batch event"],
    config: AugmentConfig,
) -> tuple[Float[Array, "batch frames mel"], Float[Array, "batch event"]]:
    """Shift in time, mix, then mask, so that no mask is mixed or wrapped; what is off (0) does nothing.

    `config` is static under jit.
    """
    shift_key, mixup_key, mask_key = jax.random.split(key, 3)
    if config.time_shift:
        features = time_shift(shift_key, features, config.time_shift)
    if config.mixup:
        features, labels = mixup(mixup_key, features, labels, config.mixup)
    if config.time_masks or config.mel_masks:
        features = spec_augment(mask_key, features, config)
    return features, labels


def time_shift(
    key: PRNGKeyArray, features: Float[Array, "batch frames mel"], largest: float
) -> Float[Array, "batch frames mel"]:
    """Roll each clip around its end by whole frames, uniform within ±`largest` (0 to 1) of its length.

    `largest` is static under jit.
    """
    batch, frames, _ = features.shape
    reach = int(largest * frames)
    shifts = jax.random.randint(key, (batch,), -reach, reach + 1)
    return jax.vmap(lambda clip, shift: jnp.roll(clip, shift, axis=0))(features, shifts)


def mixup(
    key: PRNGKeyArray,
    features: Float[Array, "batch frames mel"],
    labels: Float[Array, "batch event"],
    alpha: float,
) -> tuple[Float[Array, "batch frames mel"], Float[Array, "batch event"]]:
    """Mix each clip and its labels with another's: mixup (Zhang et al. 2018), of log energies.

    share * own + (1 - share) * partner's, with a share from Beta(`alpha`, `alpha`), alpha > 0,
    for each clip; partners are a permutation of the batch.
    """
    batch = len(features)
    share_key, partner_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha, (batch,))
    partner = jax.random.permutation(partner_key, batch)
    own, row = share[:, None, None], share[:, None]
    return (
        own * features + (1 - own) * features[partner],
        row * labels + (1 - row) * labels[partner],
    )


def spec_augment(
    key: PRNGKeyArray, features: Float[Array, "batch frames mel"], config: AugmentConfig
) -> Float[Array, "batch frames mel"]:
    """Blank spans of frames and of mel bands in each clip: SpecAugment (Park et al. 2019), without its warp.

    `time_masks` spans of 0 to `time_mask_frames` frames, `mel_masks` of 0 to `mel_mask_bands`
    bands, none longer than the clip; they may overlap.  The paper masks to the zero of
    mean-normalized features; these aren't, so a masked cell takes its clip's mean energy.
    `config` is static under jit.
    """
    batch, frames, mels = features.shape
    time_key, mel_key = jax.random.split(key)
    in_time = _spans(time_key, batch, frames, config.time_masks, config.time_mask_frames)
    in_mel = _spans(mel_key, batch, mels, config.mel_masks, config.mel_mask_bands)
    mean = features.mean(axis=(1, 2), keepdims=True)
    return jnp.where(in_time[:, :, None] | in_mel[:, None, :], mean, features)


def _spans(key: PRNGKeyArray, batch: int, size: int, count: int, longest: int) -> Bool[Array, "batch size"]:
    """True within `count` spans a clip, each of uniform length 0 to `longest`, then of uniform position."""
    length_key, start_key = jax.random.split(key)
    length = jax.random.randint(length_key, (batch, count), 0, min(longest, size) + 1)
    start = jax.random.randint(start_key, (batch, count), 0, size - length + 1)
    cell = jnp.arange(size)[None, None, :]
    return ((start[:, :, None] <= cell) & (cell < (start + length)[:, :, None])).any(axis=1)
