from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from qkd_jax.audio.logmel import log_mel
from qkd_jax.config import FeatureConfig, InputError
from qkd_jax.data.clips import Clip
from qkd_jax.data.features import clip_features, load_features, mean_and_std

CONFIG = FeatureConfig(n_mels=32)


@pytest.fixture
def record(tmp_path):
    """Writes samples (float, so that nothing is rounded) and gives the clip."""

    def record(name, samples, rate=16_000, labels=()):
        path = tmp_path / name
        soundfile.write(path, samples, rate, subtype="FLOAT")
        return Clip(name=name, path=path, labels=frozenset(labels), group=name, split="train")

    return record


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


@pytest.mark.parametrize("samples", [16_000, 21_337, 15_999])
def test_features_are_those_of_the_samples_bit_for_bit(record, samples):
    waveform = noise(samples)
    features = clip_features(record("a.wav", waveform), CONFIG, frames=10)
    np.testing.assert_array_equal(features, log_mel(jnp.asarray(waveform), CONFIG))


@pytest.mark.parametrize("samples", [50, 7001, 15_919])
def test_a_short_clip_is_tiled(record, samples):
    waveform, frames = noise(samples), 98
    features = clip_features(record("a.wav", waveform), CONFIG, frames)
    tiled = np.resize(waveform, 400 + 97 * 160)  # np.resize repeats
    np.testing.assert_array_equal(features, log_mel(jnp.asarray(tiled), CONFIG))
    assert len(features) == frames
    # Zeros would show as the floor's logarithm, and length would tell the class.
    assert features.min() > np.log(CONFIG.floor) + 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_named(record, wrong):
    waveform = noise(16_000)
    waveform[8000] = wrong
    with pytest.raises(InputError, match=r"broken\.wav: expected finite samples"):
        clip_features(record("broken.wav", waveform), CONFIG, 98)


def test_a_split_keeps_order_names_and_targets(record):
    waveforms = [noise(16_000 + 500 * seed, seed) for seed in range(6)]
    labels = [{"dog"}, set(), {"cat"}, {"dog", "cat"}, {"other"}, {"cat"}]
    clips = [record(f"{index}.wav", waveforms[index], labels=labels[index]) for index in range(6)]
    data = load_features(clips, ("cat", "dog"), CONFIG, 98)
    assert data.names == [clip.name for clip in clips]
    assert data.events == ("cat", "dog")
    np.testing.assert_array_equal(data.targets, [[0, 1], [0, 0], [1, 0], [1, 1], [0, 0], [1, 0]])
    for features, waveform in zip(data.features, waveforms):
        np.testing.assert_array_equal(features, log_mel(jnp.asarray(waveform), CONFIG))


def test_recordings_of_another_rate_are_resampled(record):
    time = np.arange(8000) / 8000
    low = clip_features(record("low.wav", 0.5 * np.sin(2 * np.pi * 1000 * time), 8000), CONFIG, 98)
    time = np.arange(16_000) / 16_000
    high = clip_features(record("high.wav", 0.5 * np.sin(2 * np.pi * 1000 * time)), CONFIG, 98)
    band = high[50].argmax()
    np.testing.assert_allclose(low[10:-10, band], high[10:-10, band], atol=0.01)


def test_a_missing_recording_is_named():
    clip = Clip(name="gone.wav", path=Path("gone.wav"), labels=frozenset(), group="gone")
    with pytest.raises(InputError, match=r"gone\.wav"):
        load_features([clip], (), CONFIG, 98)


def test_mean_and_std_are_those_of_all_frames():
    rng = np.random.default_rng(0)
    features = [rng.normal(-8, 3, (frames, 5)).astype(np.float32) for frames in (1, 40, 200)]
    mean, std = mean_and_std(features)
    frames = np.concatenate(features).astype(np.float64)
    np.testing.assert_allclose(mean, frames.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, frames.std(axis=0), rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_a_constant_band_stays_finite_when_normalized():
    features = np.random.default_rng(0).normal(0, 1, (50, 3)).astype(np.float32)
    features[:, 1] = np.log(1e-6)
    mean, std = mean_and_std([features])
    normalized = (features - mean) / std
    assert np.isfinite(normalized).all()
    assert np.abs(normalized[:, 1]).max() < 1
