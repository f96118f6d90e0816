"""What was drawn is read off the results, and NumPy does the same with it."""

import functools
from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.audio.augment import augment, mixup, spec_augment, time_shift
from qkd_jax.config import AugmentConfig

# Clips of different means, as of energies; no two cells are equal.
FEATURES = np.random.default_rng(0).normal(-5, 2, (64, 20, 12)).astype(np.float32)
FEATURES += np.linspace(-3, 3, 64, dtype=np.float32)[:, None, None]
MANY = np.tile(FEATURES, (32, 1, 1))
# A clip's labels name the clip.
LABELS = np.eye(64, dtype=np.float32)
ALL = AugmentConfig(
    time_shift=0.2, time_masks=2, time_mask_frames=5, mel_masks=1, mel_mask_bands=4, mixup=1.0
)

keys = st.integers(0, 2**31 - 1).map(jax.random.key)


def shifts_of(shifted, features, reach):
    """By how many frames each clip was rolled; fails unless that is so for just one number within ±reach."""
    ways = range(-reach, reach + 1)
    same = np.stack([(shifted == np.roll(features, k, axis=1)).all(axis=(1, 2)) for k in ways])
    np.testing.assert_array_equal(same.sum(axis=0), 1)
    return same.argmax(axis=0) - reach


def masks_of(masked, features):
    """Frames [batch, frames] and bands [batch, mels] that were masked; all else must be as it was."""
    hidden = masked != features
    frames, bands = hidden.all(axis=2), hidden.all(axis=1)
    np.testing.assert_array_equal(hidden, frames[:, :, None] | bands[:, None, :])
    mean = np.broadcast_to(features.mean(axis=(1, 2), dtype=np.float64)[:, None, None], features.shape)
    np.testing.assert_allclose(masked[hidden], mean[hidden], rtol=1e-5)
    return frames, bands


def runs(row):
    """Lengths of the runs of True."""
    return [len(list(run)) for masked, run in groupby(row) if masked]


def assert_spans(rows, count, longest):
    """Each row is what `count` spans of at most `longest` can cover: spans may touch, overlap or be empty."""
    for row in rows:
        assert sum(-(-run // longest) for run in runs(row)) <= count


def mixed_from(labels):
    """(share, partner) of each clip, read off mixed `LABELS`."""
    others = labels - np.diag(np.diag(labels))
    # A clip that is its own partner has no other label.
    partner = np.where(others.any(axis=1), others.argmax(axis=1), np.arange(len(labels)))
    return np.diag(labels), partner


def assert_uniform(drawn, values):
    """Each of `values` about as often as the others: chi-squared, a chance of 1 in 1000 that a key fails."""
    counts = [np.sum(np.asarray(drawn) == value) for value in values]
    assert sum(counts) == len(drawn)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@settings(deadline=None, max_examples=20)
@given(keys, st.floats(0, 0.49))
def test_a_shifted_clip_is_rolled_within_bounds(key, largest):
    shifted = np.asarray(time_shift(key, jnp.asarray(FEATURES), largest))
    shifts_of(shifted, FEATURES, reach=int(largest * 20))


def test_shifts_are_uniform_and_each_clips_own():
    shifted = np.asarray(time_shift(jax.random.key(0), jnp.asarray(MANY), 0.2))
    assert_uniform(shifts_of(shifted, MANY, reach=4), range(-4, 5))


def test_the_largest_shift_of_all_is_once_around():
    shifted = np.asarray(time_shift(jax.random.key(0), jnp.asarray(MANY), 1.0))
    ways = [(shifted == np.roll(MANY, k, axis=1)).all(axis=(1, 2)).any() for k in range(20)]
    assert all(ways)


@settings(deadline=None, max_examples=20)
@given(keys, st.integers(0, 2), st.integers(1, 6), st.integers(0, 2), st.integers(1, 4))
def test_masks_are_spans_of_frames_and_bands_blanked_to_the_clips_mean(key, time, frames, mel, bands):
    config = AugmentConfig(time_masks=time, time_mask_frames=frames, mel_masks=mel, mel_mask_bands=bands)
    masked = np.asarray(spec_augment(key, jnp.asarray(FEATURES), config))
    in_time, in_mel = masks_of(masked, FEATURES)
    assert_spans(in_time, time, frames)
    assert_spans(in_mel, mel, bands)
    assert in_time.any() == (time > 0) and in_mel.any() == (mel > 0)


@pytest.mark.parametrize("axis", ["time", "mel"])
def test_lengths_of_masks_are_uniform_and_then_their_positions(axis):
    if axis == "time":
        size, config = 20, AugmentConfig(time_masks=1, time_mask_frames=4)
    else:
        size, config = 12, AugmentConfig(mel_masks=1, mel_mask_bands=4)
    masked = np.asarray(spec_augment(jax.random.key(1), jnp.asarray(MANY), config))
    rows = masks_of(masked, MANY)[0 if axis == "time" else 1]
    lengths = rows.sum(axis=1)
    assert_uniform(lengths, range(5))
    for length in range(1, 5):
        assert_uniform(rows[lengths == length].argmax(axis=1), range(size - length + 1))


def test_masks_are_many_and_drawn_apart():
    """Two of a clip's masks are seldom one and the same, nor are those in time and in mel."""
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
    own = share[:, None, None]
    np.testing.assert_allclose(mixed, own * FEATURES + (1 - own) * FEATURES[partner], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(labels, share[:, None] * LABELS + (1 - share[:, None]) * LABELS[partner])


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
        assert_spans([frames], ALL.time_masks, ALL.time_mask_frames)
        assert_spans([bands], ALL.mel_masks, ALL.mel_mask_bands)
        apart.append(best // 9 != best % 9)
    # Partners have shifts of their own.
    assert np.mean(apart) > 0.5


def test_what_is_off_does_nothing():
    key = jax.random.key(6)
    features, labels = augmented(key, AugmentConfig())
    np.testing.assert_array_equal(features, FEATURES)
    np.testing.assert_array_equal(labels, LABELS)

    features, labels = augmented(key, AugmentConfig(time_shift=0.2))
    assert shifts_of(features, FEATURES, reach=4).any()
    np.testing.assert_array_equal(labels, LABELS)

    for config in (AugmentConfig(time_masks=1, time_mask_frames=5), AugmentConfig(mel_masks=1)):
        features, labels = augmented(key, config)
        in_time, in_mel = masks_of(features, FEATURES)
        assert in_time.any() == (config.time_masks > 0) and in_mel.any() == (config.mel_masks > 0)
        np.testing.assert_array_equal(labels, LABELS)

    features, labels = augmented(key, AugmentConfig(mixup=1.0))
    shares, partners = mixed_from(labels)
    own = shares[:, None, None]
    mixed = own * FEATURES + (1 - own) * FEATURES[partners]
    np.testing.assert_allclose(features, mixed, rtol=1e-5, atol=1e-5)
    assert (partners != np.arange(64)).any()


SINGLE = [AugmentConfig(time_shift=0.4), AugmentConfig(time_masks=3), AugmentConfig(mixup=1.0)]


@pytest.mark.parametrize("config", [ALL, *SINGLE], ids=["all", "shift", "masks", "mixup"])
def test_draws_are_the_keys_alone_and_jit_changes_nothing(config):
    once, again = (augmented(jax.random.key(7), config) for _ in range(2))
    compiled = augmented(jax.random.key(7), config, jax.jit(augment, static_argnames="config"))
    jax.tree.map(np.testing.assert_array_equal, again, once)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), compiled, once)
    other, _ = augmented(jax.random.key(8), config)
    assert (once[0] != other).any(axis=(1, 2)).mean() > 0.7
