"""Augmentation of clips: the draws are read off the results, and NumPy repeats the operation with them."""

import functools
from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.audio.augment import augment, change_levels, mixture, mixup, spec_augment, time_shift
from qkd_jax.config import AugmentConfig
from tests.audio.augmented import keys, masks_of, mixed_by, mixed_from, shifts_of
from tests.trees import assert_close, assert_equal

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# Clips of different mean energies; no two cells are equal.
FEATURES = np.random.default_rng(0).normal(-5, 2, (64, 20, 12)).astype(np.float32)
FEATURES += np.linspace(-3, 3, 64, dtype=np.float32)[:, None, None]
MANY = np.tile(FEATURES, (32, 1, 1))
# A clip's labels name the clip.
LABELS = np.eye(64, dtype=np.float32)
MASKS = {"time_masks": 2, "time_mask_frames": 5, "mel_masks": 1, "mel_mask_bands": 4}
ALL = AugmentConfig(time_shift=0.2, mixup=1.0, **MASKS)


def runs(row):
    """Lengths of the runs of True."""
    return [len(list(run)) for masked, run in groupby(row) if masked]


def assert_ranges(rows, count, longest):
    """`count` ranges of at most `longest` can cover each row; they may touch, overlap or be empty."""
    for row in rows:
        assert sum(-(-run // longest) for run in runs(row)) <= count


def assert_uniform(drawn, values):
    """All `values` are about as frequent: chi-squared, which fails for 1 key in 1000."""
    counts = [np.sum(np.asarray(drawn) == value) for value in values]
    assert sum(counts) == len(drawn)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@settings(deadline=None, max_examples=20)
@given(keys, st.floats(0, 0.49))
def test_a_shifted_clip_is_rolled_within_bounds(key, largest):
    shifted = np.asarray(time_shift(key, jnp.asarray(FEATURES), largest))
    shifts_of(shifted, FEATURES, reach=int(largest * 20))


@pytest.mark.parametrize(("largest", "hop", "shifts"), [(0.2, 1, range(-4, 5)), (0.4, 3, range(-6, 7, 3))])
def test_shifts_are_uniform_multiples_of_a_hop_and_per_clip(largest, hop, shifts):
    shifted = np.asarray(time_shift(jax.random.key(0), jnp.asarray(MANY), largest, hop))
    assert_uniform(shifts_of(shifted, MANY, reach=int(20 * largest)), shifts)


def test_the_largest_shift_of_all_is_once_around():
    shifted = np.asarray(time_shift(jax.random.key(0), jnp.asarray(MANY), 1.0))
    assert all((shifted == np.roll(MANY, k, axis=1)).all(axis=(1, 2)).any() for k in range(20))


@settings(deadline=None, max_examples=20)
@given(keys, st.integers(0, 2), st.integers(1, 6), st.integers(0, 2), st.integers(1, 4))
def test_masks_set_ranges_of_frames_and_bands_to_the_clips_mean(key, time, frames, mel, bands):
    config = AugmentConfig(time_masks=time, time_mask_frames=frames, mel_masks=mel, mel_mask_bands=bands)
    masked = np.asarray(spec_augment(key, jnp.asarray(FEATURES), config))
    in_time, in_mel = masks_of(masked, FEATURES)
    assert_ranges(in_time, time, frames)
    assert_ranges(in_mel, mel, bands)
    assert in_time.any() == (time > 0) and in_mel.any() == (mel > 0)


@pytest.mark.parametrize("axis", ["time", "mel"])
def test_lengths_of_masks_are_uniform_and_then_their_positions(axis):
    size, config = {
        "time": (20, AugmentConfig(time_masks=1, time_mask_frames=4)),
        "mel": (12, AugmentConfig(mel_masks=1, mel_mask_bands=4)),
    }[axis]
    masked = np.asarray(spec_augment(jax.random.key(1), jnp.asarray(MANY), config))
    rows = masks_of(masked, MANY)[0 if axis == "time" else 1]
    lengths = rows.sum(axis=1)
    assert_uniform(lengths, range(5))
    for length in range(1, 5):
        assert_uniform(rows[lengths == length].argmax(axis=1), range(size - length + 1))


def test_masks_are_drawn_independently():
    """Two masks of a clip seldom coincide, nor do those in time and in mel."""
    square = jnp.asarray(MANY[:, :12])
    config = AugmentConfig(time_masks=2, time_mask_frames=3, mel_masks=2, mel_mask_bands=3)
    in_time, in_mel = masks_of(np.asarray(spec_augment(jax.random.key(2), square, config)), MANY[:, :12])
    assert np.mean([len(runs(row)) == 2 for row in in_time]) > 0.2
    assert (in_time == in_mel).all(axis=1).mean() < 0.1


def test_masks_longer_than_the_clip_are_limited_to_it():
    config = AugmentConfig(time_masks=1, time_mask_frames=50)
    masked = np.asarray(spec_augment(jax.random.key(3), jnp.asarray(MANY), config))
    assert_uniform((masked != MANY).all(axis=2).sum(axis=1), range(21))


@settings(deadline=None, max_examples=20)
@given(keys, st.floats(0.1, 100))
def test_mixup_is_a_share_of_one_clip_and_the_rest_of_another(key, alpha):
    mixed, labels = (np.asarray(x) for x in mixup(key, jnp.asarray(FEATURES), jnp.asarray(LABELS), alpha))
    share, partner = mixed_from(labels)
    np.testing.assert_allclose(mixed, mixed_by(FEATURES, share, partner), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(labels, mixed_by(LABELS, share, partner))


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_shares_are_beta_and_partners_a_permutation(alpha):
    draw = jax.vmap(functools.partial(mixup, alpha=alpha), in_axes=(0, None, None))
    _, labels = draw(jax.random.split(jax.random.key(4), 40), jnp.asarray(FEATURES), jnp.asarray(LABELS))
    shares, partners = zip(*map(mixed_from, np.asarray(labels)))
    others = np.stack(partners) != np.arange(64)
    assert scipy.stats.kstest(np.stack(shares)[others], scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    if alpha >= 1:  # a share that rounds to 1 hides its partner
        np.testing.assert_array_equal(np.sort(partners, axis=1), np.tile(np.arange(64), (40, 1)))
        assert len(set(map(tuple, partners))) == 40
    # A clip's labels sum to 1 as before, and each label's sum over a batch is still 1 in the mean of 40.
    np.testing.assert_allclose(labels.sum(axis=2), 1, rtol=1e-6)
    np.testing.assert_allclose(labels.sum(axis=1).mean(axis=0), 1, atol=0.4)


def energies(features, floor):
    return np.exp(np.asarray(features, np.float64)) - floor


def assert_gains(new, old, factor_of, largest):
    """`new` energies are those of `old` times one factor per clip, within ±largest dB; returns the dB."""
    factors = np.median(new / factor_of, axis=(1, 2))
    # The features are float32 logarithms, whose rounding is relative to the sum with the floor.
    np.testing.assert_allclose(new, factors[:, None, None] * factor_of, atol=2e-5 * np.max(old + new + 1))
    decibels = 10 * np.log10(factors)
    assert (np.abs(decibels) < largest + 1e-3).all()
    return decibels


@settings(deadline=None, max_examples=10)
@given(keys, st.floats(0.5, 20), st.sampled_from([1e-6, 1e-3, 0.1]))
def test_a_gain_multiplies_the_energies_of_a_clip(key, largest, floor):
    energy = np.random.default_rng(1).uniform(0.1, 1, (16, 5, 4))
    energy[:, 0, 0] = 0  # the floor stays
    features = jnp.asarray(np.log(energy + floor), jnp.float32)
    changed = np.asarray(change_levels(key, features, largest, floor))
    assert_gains(energies(changed, floor)[:, 1:], energy[:, 1:], energy[:, 1:], largest)
    np.testing.assert_allclose(changed[:, 0, 0], np.log(floor), atol=1e-4)


def test_gains_are_uniform_in_decibels_and_per_clip():
    features = jnp.zeros((2048, 2, 2))
    changed = energies(change_levels(jax.random.key(20), features, 6.0, 1e-6), 1e-6)
    decibels = 10 * np.log10(changed[:, 0, 0])
    assert scipy.stats.kstest(decibels, scipy.stats.uniform(-6, 12).cdf).pvalue > 1e-3


MIXTURES = AugmentConfig(mixtures=1.0, mixture_gain=9.0)
ENERGY = np.random.default_rng(2).uniform(0.1, 1, (64, 5, 4))
LOG_ENERGY = jnp.asarray(np.log(ENERGY + 1e-3), jnp.float32)


@functools.partial(jax.jit, static_argnames="config")
def mixed_energies(key, labels, config):
    return mixture(key, LOG_ENERGY, labels, config, 1e-3)


@settings(deadline=None, max_examples=10)
@given(keys)
def test_a_mixture_adds_energies_and_has_the_events_of_both(key):
    labels = {"names": LABELS, "events": np.random.default_rng(3).random((64, 3), np.float32)}
    features, mixed = mixed_energies(key, jax.tree.map(jnp.asarray, labels), MIXTURES)
    _, partner = mixed_from(np.asarray(mixed["names"]))
    np.testing.assert_array_equal(np.sort(partner), np.arange(64))
    both = energies(features, 1e-3) - ENERGY
    assert_gains(both, ENERGY, ENERGY[partner], 9.0)
    p = labels["events"].astype(np.float64)
    np.testing.assert_allclose(mixed["events"], 1 - (1 - p) * (1 - p[partner]), rtol=1e-5)
    np.testing.assert_array_equal(mixed["names"], np.maximum(LABELS, LABELS[partner]))


def test_the_share_of_mixtures_and_their_gains_are_as_set():
    config = AugmentConfig(mixtures=0.3, mixture_gain=6.0)
    draws = [
        mixed_energies(key, jnp.asarray(LABELS), config) for key in jax.random.split(jax.random.key(21), 60)
    ]
    features, labels = (np.stack(each) for each in zip(*draws))
    changed = (np.asarray(features) != np.asarray(LOG_ENERGY)).any(axis=(2, 3))
    assert scipy.stats.binomtest(int(changed.sum()), changed.size, 0.3).pvalue > 1e-3
    partners = np.stack([mixed_from(each)[1] for each in labels])
    others = partners != np.arange(64)
    assert not others[~changed].any() and others[changed].mean() > 0.9
    both = energies(features, 1e-3) - ENERGY
    decibels = 10 * np.log10(np.median(both / ENERGY[partners], axis=(2, 3))[changed])
    assert scipy.stats.kstest(decibels, scipy.stats.uniform(-6, 12).cdf).pvalue > 1e-3


def augmented(key, config, function=augment):
    return [np.asarray(x) for x in function(key, jnp.asarray(FEATURES), jnp.asarray(LABELS), config)]


def test_augment_shifts_then_mixes_then_masks():
    features, labels = augmented(jax.random.key(5), ALL)
    shares, partners = mixed_from(labels)
    rolled = [np.roll(FEATURES, k, axis=1) for k in range(-4, 5)]
    apart = []
    for clip, (share, partner) in enumerate(zip(shares, partners)):
        # The two shifts that explain most cells; masks explain the rest.
        mixes = [share * own[clip] + (1 - share) * other[partner] for own in rolled for other in rolled]
        best = max(range(81), key=lambda n: np.isclose(features[clip], mixes[n], rtol=1e-5, atol=1e-5).sum())
        hidden = ~np.isclose(features[clip], mixes[best], rtol=1e-5, atol=1e-5)
        frames, bands = hidden.all(axis=1), hidden.all(axis=0)
        np.testing.assert_array_equal(hidden, frames[:, None] | bands[None])
        np.testing.assert_allclose(features[clip][hidden], mixes[best].mean(), rtol=1e-5)
        assert_ranges([frames], ALL.time_masks, ALL.time_mask_frames)
        assert_ranges([bands], ALL.mel_masks, ALL.mel_mask_bands)
        apart.append(best // 9 != best % 9)
    # Partners are shifted independently.
    assert np.mean(apart) > 0.5


def test_settings_of_0_do_nothing_and_only_mixing_changes_labels():
    masks = AugmentConfig(time_masks=1, time_mask_frames=5), AugmentConfig(mel_masks=1)
    for config in (AugmentConfig(), AugmentConfig(time_shift=0.2), AugmentConfig(gain=6.0), *masks):
        features, labels = augmented(jax.random.key(6), config)
        np.testing.assert_array_equal(labels, LABELS)
        assert (features != FEATURES).any() == (config != AugmentConfig())


SINGLE = [AugmentConfig(time_shift=0.4), AugmentConfig(time_masks=3), AugmentConfig(mixup=1.0)]
SINGLE += [AugmentConfig(gain=6.0), AugmentConfig(mixtures=0.9)]


@pytest.mark.parametrize("config", [ALL, *SINGLE], ids=["all", "shift", "masks", "mixup", "gain", "mixtures"])
def test_draws_depend_on_the_key_alone_and_jit_changes_nothing(config):
    once, again = (augmented(jax.random.key(7), config) for _ in range(2))
    compiled = augmented(jax.random.key(7), config, jax.jit(augment, static_argnames="config"))
    assert_equal(again, once)
    assert_close(compiled, once, rtol=1e-5, atol=1e-5)
    other, _ = augmented(jax.random.key(8), config)
    assert (once[0] != other).any(axis=(1, 2)).mean() > 0.7


def test_batches_are_mixed_as_often_as_set():
    shares, features, labels = (0.0, 0.3, 1.0), FEATURES[:16], LABELS[:16]

    @jax.jit
    @jax.vmap
    def draw(key):
        configs = [AugmentConfig(mixup=1.0, mixup_share=share) for share in shares]
        return [augment(key, jnp.asarray(features), jnp.asarray(labels), config) for config in configs]

    results = jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(9), 300)))
    for share, (mixed_features, mixed_labels) in zip(shares, results, strict=True):
        plain = (mixed_features == features).all(axis=(1, 2, 3))
        np.testing.assert_array_equal((mixed_labels == labels).all(axis=(1, 2)), plain)
        assert scipy.stats.binomtest(int((~plain).sum()), 300, share).pvalue > 1e-3
