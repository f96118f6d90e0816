"""Random augmentation of log-mel energies: pure functions of a key, with a draw per clip."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from qkd_jax.config import AugmentConfig, FeatureConfig

_GAIN, _MIXTURE, _MIXUP = 5, 4, 3  # folded into the key, apart from the keys that are split from it


def augment(
    key: PRNGKeyArray,
    features: Float[Array, "batch frames mel"],
    labels: PyTree[Float[Array, "batch *_"]],
    config: AugmentConfig,
    floor: float = FeatureConfig().floor,
) -> tuple[Float[Array, "batch frames mel"], PyTree[Float[Array, "batch *_"]]]:
    """Shift in time, change levels, mix, then mask, so that no mask is mixed; 0 turns a change off.

    `labels` may be a tree of probabilities, such as labels and posteriors.  `floor` was added to energies
    before the logarithm.  `config` is static under jit.
    """
    shift_key, mixup_key, mask_key = jax.random.split(key, 3)
    if config.time_shift:
        features = time_shift(shift_key, features, config.time_shift)
    if config.gain:
        features = change_levels(jax.random.fold_in(key, _GAIN), features, config.gain, floor)
    if config.mixup:
        features, labels = mixup(mixup_key, features, labels, config.mixup, _is_mixed(key, config))
    if config.mixtures:
        features, labels = mixture(jax.random.fold_in(key, _MIXTURE), features, labels, config, floor)
    if config.time_masks or config.mel_masks:
        features = spec_augment(mask_key, features, config)
    return features, labels


def augment_frames(
    key: PRNGKeyArray,
    batch: Mapping[str, Float[Array, "batch *_"]],
    config: AugmentConfig,
    *,
    stride: int,
    sizes: tuple[int, int, int],
    floor: float = FeatureConfig().floor,
) -> dict[str, Float[Array, "batch *_"]]:
    """Augment a batch of timed events as `augment` does, its labels and targets along with the features.

    `floor` was added to energies before the logarithm.

    Targets per frame (`strong`, `teacher`) are shifted with the frames, by multiples of `stride`, and set to
    0 in masked frames; `embedding`, with one row per `stride` frames, is shifted too.  `sizes` counts the
    strong, weak and unlabelled clips, in this order: strong clips are mixed with strong ones and weak with
    weak ones (both kinds or neither), and their targets by the same shares.  `weak` of a strong clip remains
    the maximum over its frames.

    `config`, `stride` and `sizes` are static under jit.  Raises ValueError if `sizes` don't sum to the batch.
    """
    if sum(sizes) != len(batch["features"]):
        raise ValueError(f"sizes: expected {len(batch['features'])} clips in all, got {sizes}")
    batch, (strong, weak, _) = dict(batch), sizes
    per_frame = [name for name in ("strong", "teacher") if name in batch]
    targets = [name for name in ("strong", "weak", "teacher", "teacher_clip", "embedding") if name in batch]
    shift_key, mixup_key, mask_key = jax.random.split(key, 3)
    if config.time_shift:
        rolled = {name: batch[name] for name in ("features", *per_frame)}
        batch |= time_shift(shift_key, rolled, config.time_shift, stride)
        if "embedding" in batch:
            steps = _steps(shift_key, batch["features"], config.time_shift, stride)
            batch["embedding"] = _rolled(batch["embedding"], steps)
    if config.gain:
        key_of_gain = jax.random.fold_in(key, _GAIN)
        batch["features"] = change_levels(key_of_gain, batch["features"], config.gain, floor)
    kinds = slice(strong), slice(strong, strong + weak)

    def mix_kinds(key: PRNGKeyArray, mix: Callable[..., Any]) -> dict[str, jax.Array]:
        parts = []
        for kind_key, kind in zip(jax.random.split(key), kinds):
            labels = {name: batch[name][kind] for name in targets}
            features, labels = mix(kind_key, batch["features"][kind], labels)
            parts.append({"features": features, **labels})
        parts.append({name: batch[name][strong + weak :] for name in ("features", *targets)})
        # Not `at[kind].set`: on CPUs, jaxlib 0.10.2 then reads partners that are already mixed.
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    if config.mixup:
        mixed = _is_mixed(key, config)
        batch |= mix_kinds(mixup_key, partial(mixup, alpha=config.mixup, mixed=mixed))
    if config.mixtures:
        key_of_mixture = jax.random.fold_in(key, _MIXTURE)
        batch |= mix_kinds(key_of_mixture, partial(mixture, config=config, floor=floor))
    if config.time_masks or config.mel_masks:
        in_time, in_mel = _masks(mask_key, batch["features"], config)
        batch["features"] = _masked(batch["features"], in_time, in_mel)
        batch |= {name: jnp.where(in_time[:, :, None], 0, batch[name]) for name in per_frame}
    weak_of_strong = batch["strong"][:strong].max(axis=1)
    return batch | {"weak": jnp.concatenate([weak_of_strong, batch["weak"][strong:]])}


def time_shift(
    key: PRNGKeyArray, features: PyTree[Float[Array, "batch frames _"]], largest: float, stride: int = 1
) -> PyTree[Float[Array, "batch frames _"]]:
    """Roll each clip around its end by a multiple of `stride` frames, uniform in ±`largest` of its length.

    `features` may be a tree, whose leaves are rolled together.  `largest` (0 to 1) and `stride` are static
    under jit.
    """
    shifts = stride * _steps(key, jax.tree.leaves(features)[0], largest, stride)
    return jax.tree.map(lambda leaf: _rolled(leaf, shifts), features)


def mixup(
    key: PRNGKeyArray,
    features: Float[Array, "batch frames mel"],
    labels: PyTree[Float[Array, "batch *_"]],
    alpha: float,
    mixed: bool | Bool[Array, ""] = True,
) -> tuple[Float[Array, "batch frames mel"], PyTree[Float[Array, "batch *_"]]]:
    """Mix each clip and its labels with another clip: mixup (Zhang et al. 2018), on log energies.

    The result is share · clip + (1 - share) · partner, with a share per clip from Beta(`alpha`, `alpha`),
    alpha > 0; the partners are a permutation of the batch.  If `mixed` is false, nothing changes.
    """
    batch = len(features)
    share_key, partner_key = jax.random.split(key)
    share = jnp.where(mixed, jax.random.beta(share_key, alpha, alpha, (batch,)), 1)
    partner = jax.random.permutation(partner_key, batch)

    def mix(leaf: Float[Array, "batch *_"]) -> Float[Array, "batch *_"]:
        own = share.reshape(-1, *[1] * (leaf.ndim - 1))
        return own * leaf + (1 - own) * leaf[partner]

    return mix(features), jax.tree.map(mix, labels)


def change_levels(
    key: PRNGKeyArray, features: Float[Array, "batch frames mel"], largest: float, floor: float
) -> Float[Array, "batch frames mel"]:
    """Change the level of each clip by a gain uniform in ±`largest` dB.

    With gain g, energy e becomes g² e: log(e + floor) becomes log(g² e + floor).
    """
    power = _power(key, len(features), largest)
    return _logarithm(power * _energy(features, floor), floor)


def mixture(
    key: PRNGKeyArray,
    features: Float[Array, "batch frames mel"],
    labels: PyTree[Float[Array, "batch *_"]],
    config: AugmentConfig,
    floor: float,
) -> tuple[Float[Array, "batch frames mel"], PyTree[Float[Array, "batch *_"]]]:
    """Add another clip to a share `config.mixtures` of the clips, as two sounds at once: energies are added.

    The other has a gain uniform in ±`config.mixture_gain` dB; the partners are a permutation of the batch.
    An event is in the mixture unless neither clip has it: labels p and q become 1 - (1 - p)(1 - q).
    """
    batch = len(features)
    mixed_key, partner_key, gain_key = jax.random.split(key, 3)
    mixed = jax.random.bernoulli(mixed_key, config.mixtures, (batch,))
    partner = jax.random.permutation(partner_key, batch)
    energy = _energy(features, floor)
    both = _logarithm(energy + _power(gain_key, batch, config.mixture_gain) * energy[partner], floor)

    def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(jnp.broadcast_to(mixed.reshape(-1, *[1] * (old.ndim - 1)), old.shape), new, old)

    labels = jax.tree.map(lambda leaf: chosen(1 - (1 - leaf) * (1 - leaf[partner]), leaf), labels)
    return chosen(both, features), labels


def spec_augment(
    key: PRNGKeyArray, features: Float[Array, "batch frames mel"], config: AugmentConfig
) -> Float[Array, "batch frames mel"]:
    """Mask ranges of frames and of mel bands in each clip: SpecAugment (Park et al. 2019) unwarped.

    There are `time_masks` ranges of 0 to `time_mask_frames` frames, and `mel_masks` of 0 to `mel_mask_bands`
    bands; none is longer than the clip, and they may overlap.  The paper masks with 0, the mean of its
    normalized features; ours aren't normalized, so a masked cell gets the mean energy of its clip.
    `config` is static under jit.
    """
    return _masked(features, *_masks(key, features, config))


def _power(key: PRNGKeyArray, batch: int, largest: float) -> Float[Array, "batch 1 1"]:
    """Factors of energies for gains uniform in ±`largest` dB."""
    decibels = jax.random.uniform(key, (batch, 1, 1), minval=-largest, maxval=largest)
    return 10 ** (decibels / 10)


def _energy(features: jax.Array, floor: float) -> jax.Array:
    return jnp.maximum(jnp.exp(features) - floor, 0)


def _logarithm(energy: jax.Array, floor: float) -> jax.Array:
    return jnp.log(energy + floor)


def _steps(key: PRNGKeyArray, features: jax.Array, largest: float, stride: int) -> jax.Array:
    """Shift of each clip, as a multiple of `stride` frames."""
    batch, frames, _ = features.shape
    most = int(largest * frames) // stride
    return jax.random.randint(key, (batch,), -most, most + 1)


def _rolled(clips: jax.Array, shifts: jax.Array) -> jax.Array:
    return jax.vmap(lambda clip, shift: jnp.roll(clip, shift, axis=0))(clips, shifts)


def _is_mixed(key: PRNGKeyArray, config: AugmentConfig) -> Bool[Array, ""]:
    """Whether the batch is mixed at all."""
    return jax.random.bernoulli(jax.random.fold_in(key, _MIXUP), config.mixup_share)


def _masks(
    key: PRNGKeyArray, features: Float[Array, "batch frames mel"], config: AugmentConfig
) -> tuple[Bool[Array, "batch frames"], Bool[Array, "batch mel"]]:
    """True in the frames and in the bands to mask."""
    batch, frames, mels = features.shape
    time_key, mel_key = jax.random.split(key)
    in_time = _ranges(time_key, batch, frames, config.time_masks, config.time_mask_frames)
    in_mel = _ranges(mel_key, batch, mels, config.mel_masks, config.mel_mask_bands)
    return in_time, in_mel


def _masked(
    features: Float[Array, "batch frames mel"],
    in_time: Bool[Array, "batch frames"],
    in_mel: Bool[Array, "batch mel"],
) -> Float[Array, "batch frames mel"]:
    mean = features.mean(axis=(1, 2), keepdims=True)
    return jnp.where(in_time[:, :, None] | in_mel[:, None, :], mean, features)


def _ranges(key: PRNGKeyArray, batch: int, size: int, count: int, longest: int) -> Bool[Array, "batch size"]:
    """True within `count` ranges per clip, with lengths uniform in 0 to `longest`, then uniform positions."""
    length_key, start_key = jax.random.split(key)
    length = jax.random.randint(length_key, (batch, count), 0, min(longest, size) + 1)
    start = jax.random.randint(start_key, (batch, count), 0, size - length + 1)
    cell = jnp.arange(size)[None, None, :]
    return ((start[:, :, None] <= cell) & (cell < (start + length)[:, :, None])).any(axis=1)
