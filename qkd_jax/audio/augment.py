"""Random changes to a batch of log-mel energies, pure in their keys; each clip has its own draw."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

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
        features, labels = mixup(mixup_key, features, labels, config.mixup, _is_mixed(key, config))
    if config.time_masks or config.mel_masks:
        features = spec_augment(mask_key, features, config)
    return features, labels


def augment_frames(
    key: PRNGKeyArray,
    batch: Mapping[str, Float[Array, "batch *_"]],
    config: AugmentConfig,
    *,
    hop: int,
    sizes: tuple[int, int, int],
) -> dict[str, Float[Array, "batch *_"]]:
    """A batch of `sed_batches`, augmented in the same order, with its labels.

    What is known of frames (`strong`, `teacher`) is shifted with them, by multiples of `hop`, and
    0 in spans of frames that are blanked; `embedding`, a row for each `hop` of them, is shifted too.
    Of the `sizes` of strong, weak and unlabelled clips, which lie in this order, strong ones are mixed
    with strong ones, weak ones with weak ones, both or neither; with them all that is known, by the
    same shares.  `weak` of strong clips is the largest of their frames', as before.

    `config`, `hop` and `sizes` are static under jit.
    """
    if sum(sizes) != len(batch["features"]):
        raise ValueError(f"sizes: expected {len(batch['features'])} clips in all, got {sizes}")
    batch, (strong, weak, _) = dict(batch), sizes
    of_frames = [name for name in ("strong", "teacher") if name in batch]
    known = [name for name in ("strong", "weak", "teacher", "teacher_clip", "embedding") if name in batch]
    shift_key, mixup_key, mask_key = jax.random.split(key, 3)
    if config.time_shift:
        rolled = {name: batch[name] for name in ("features", *of_frames)}
        batch |= time_shift(shift_key, rolled, config.time_shift, hop)
        if "embedding" in batch:
            steps = _steps(shift_key, batch["features"], config.time_shift, hop)
            batch["embedding"] = _rolled(batch["embedding"], steps)
    if config.mixup:
        mixed, rest = _is_mixed(key, config), strong + weak
        parts = []
        for kind_key, kind in zip(jax.random.split(mixup_key), (slice(strong), slice(strong, rest))):
            labels = {name: batch[name][kind] for name in known}
            features, labels = mixup(kind_key, batch["features"][kind], labels, config.mixup, mixed)
            parts.append({"features": features, **labels})
        parts.append({name: batch[name][rest:] for name in ("features", *known)})
        # Not `at[kind].set`: jit then reads partners that are mixed already, with jaxlib 0.10.2 on a CPU.
        batch |= jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    if config.time_masks or config.mel_masks:
        in_time, in_mel = _masks(mask_key, batch["features"], config)
        batch["features"] = _blanked(batch["features"], in_time, in_mel)
        batch |= {name: jnp.where(in_time[:, :, None], 0, batch[name]) for name in of_frames}
    left = batch["strong"][:strong].max(axis=1)
    return batch | {"weak": jnp.concatenate([left, batch["weak"][strong:]])}


def time_shift(
    key: PRNGKeyArray, features: PyTree[Float[Array, "batch frames _"]], largest: float, hop: int = 1
) -> PyTree[Float[Array, "batch frames _"]]:
    """Roll each clip around its end by multiples of `hop` frames, uniform within ±`largest` of its length.

    `features` may be a tree, whose leaves go together.  `largest` (0 to 1) and `hop` are static
    under jit.
    """
    shifts = hop * _steps(key, jax.tree.leaves(features)[0], largest, hop)
    return jax.tree.map(lambda leaf: _rolled(leaf, shifts), features)


def mixup(
    key: PRNGKeyArray,
    features: Float[Array, "batch frames mel"],
    labels: PyTree[Float[Array, "batch *_"]],
    alpha: float,
    mixed: bool | Bool[Array, ""] = True,
) -> tuple[Float[Array, "batch frames mel"], PyTree[Float[Array, "batch *_"]]]:
    """Mix each clip and its labels with another's: mixup (Zhang et al. 2018), of log energies.

    share * own + (1 - share) * partner's, with a share from Beta(`alpha`, `alpha`), alpha > 0,
    for each clip; partners are a permutation of the batch.  Nothing changes unless `mixed`.
    """
    batch = len(features)
    share_key, partner_key = jax.random.split(key)
    share = jnp.where(mixed, jax.random.beta(share_key, alpha, alpha, (batch,)), 1)
    partner = jax.random.permutation(partner_key, batch)

    def mix(leaf: Float[Array, "batch *_"]) -> Float[Array, "batch *_"]:
        own = share.reshape(-1, *[1] * (leaf.ndim - 1))
        return own * leaf + (1 - own) * leaf[partner]

    return mix(features), jax.tree.map(mix, labels)


def spec_augment(
    key: PRNGKeyArray, features: Float[Array, "batch frames mel"], config: AugmentConfig
) -> Float[Array, "batch frames mel"]:
    """Blank spans of frames and of mel bands in each clip: SpecAugment (Park et al. 2019), without its warp.

    `time_masks` spans of 0 to `time_mask_frames` frames, `mel_masks` of 0 to `mel_mask_bands`
    bands, none longer than the clip; they may overlap.  The paper masks to the zero of
    mean-normalized features; these aren't, so a masked cell takes its clip's mean energy.
    `config` is static under jit.
    """
    return _blanked(features, *_masks(key, features, config))


def _steps(key: PRNGKeyArray, features: jax.Array, largest: float, hop: int) -> jax.Array:
    """How far each clip is shifted, in units of `hop`."""
    batch, frames, _ = features.shape
    reach = int(largest * frames) // hop
    return jax.random.randint(key, (batch,), -reach, reach + 1)


def _rolled(clips: jax.Array, shifts: jax.Array) -> jax.Array:
    return jax.vmap(lambda clip, shift: jnp.roll(clip, shift, axis=0))(clips, shifts)


def _is_mixed(key: PRNGKeyArray, config: AugmentConfig) -> Bool[Array, ""]:
    """Whether the batch of `key`, of which three others are split, is mixed at all."""
    return jax.random.bernoulli(jax.random.fold_in(key, 3), config.mixup_share)


def _masks(
    key: PRNGKeyArray, features: Float[Array, "batch frames mel"], config: AugmentConfig
) -> tuple[Bool[Array, "batch frames"], Bool[Array, "batch mel"]]:
    """True in the frames and in the bands to blank."""
    batch, frames, mels = features.shape
    time_key, mel_key = jax.random.split(key)
    in_time = _spans(time_key, batch, frames, config.time_masks, config.time_mask_frames)
    in_mel = _spans(mel_key, batch, mels, config.mel_masks, config.mel_mask_bands)
    return in_time, in_mel


def _blanked(
    features: Float[Array, "batch frames mel"],
    in_time: Bool[Array, "batch frames"],
    in_mel: Bool[Array, "batch mel"],
) -> Float[Array, "batch frames mel"]:
    mean = features.mean(axis=(1, 2), keepdims=True)
    return jnp.where(in_time[:, :, None] | in_mel[:, None, :], mean, features)


def _spans(key: PRNGKeyArray, batch: int, size: int, count: int, longest: int) -> Bool[Array, "batch size"]:
    """True within `count` spans a clip, each of uniform length 0 to `longest`, then of uniform position."""
    length_key, start_key = jax.random.split(key)
    length = jax.random.randint(length_key, (batch, count), 0, min(longest, size) + 1)
    start = jax.random.randint(start_key, (batch, count), 0, size - length + 1)
    cell = jnp.arange(size)[None, None, :]
    return ((start[:, :, None] <= cell) & (cell < (start + length)[:, :, None])).any(axis=1)
