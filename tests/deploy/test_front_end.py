"""Log-mel energies in NumPy: librosa's, and the same bits however a stream is cut."""

import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.audio.logmel import log_mel as log_mel_in_jax
from qkd_jax.config import FeatureConfig
from qkd_jax.deploy.front_end import log_mel, push, start

PAPER = FeatureConfig()
SMALL = FeatureConfig(n_mels=32, hop_length=200, fmin=0.0, fmax=7000.0, floor=1e-3)
NARROW = FeatureConfig(sample_rate=8000, win_length=256, hop_length=80, n_fft=256, n_mels=40, fmax=4000.0)
SPARSE = FeatureConfig(win_length=200, hop_length=700, n_fft=256, n_mels=20)
CONFIGS = pytest.mark.parametrize(
    "features", [PAPER, SMALL, NARROW, SPARSE], ids=["paper", "small", "narrow", "sparse"]
)


def sound(samples, seed=0):
    """Noise that comes and goes, to silence and to full scale."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(-1, 1, samples) * np.sin(np.arange(samples) / 900) ** 8).astype(np.float32)


@CONFIGS
def test_equals_librosa_in_float64_and_jax(features):
    samples = sound(9000)
    padded = np.pad(samples.astype(np.float64), (features.n_fft - features.win_length) // 2)
    spectrum = librosa.stft(
        padded,
        n_fft=features.n_fft,
        win_length=features.win_length,
        hop_length=features.hop_length,
        center=False,
    )
    basis = librosa.filters.mel(
        sr=features.sample_rate,
        n_fft=features.n_fft,
        n_mels=features.n_mels,
        fmin=features.fmin,
        fmax=features.fmax,
        dtype=np.float64,
    )
    energies = log_mel(features, samples)
    assert energies.dtype == np.float32
    np.testing.assert_allclose(
        energies, np.log(basis @ np.abs(spectrum) ** 2 + features.floor).T, rtol=0, atol=1e-3
    )
    np.testing.assert_allclose(energies, log_mel_in_jax(jnp.asarray(samples), features), rtol=0, atol=1e-3)


@CONFIGS
def test_a_frame_is_its_samples_alone_bit_for_bit(features):
    samples = sound(20_000)
    energies = log_mel(features, samples)
    assert len(energies) == features.frames(len(samples)) > 20
    for frame, begin in enumerate(range(0, len(energies) * features.hop_length, features.hop_length)):
        alone = log_mel(features, samples[begin : begin + features.win_length].copy())
        np.testing.assert_array_equal(alone, energies[frame : frame + 1])


@CONFIGS
@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 6000), max_size=12))
def test_a_stream_in_pieces_gives_what_the_whole_gives_bit_for_bit(features, cuts):
    samples, state, pieces = sound(6000), start(), []
    for piece in np.split(samples, sorted(cuts)):
        state, energies = push(features, state, piece)
        pieces.append(energies)
        assert len(state.rest) < max(features.win_length, features.hop_length)
    np.testing.assert_array_equal(np.concatenate(pieces), log_mel(features, samples))


@CONFIGS
def test_a_frame_comes_with_its_last_sample(features):
    samples, state, frames = sound(2500), start(), 0
    for count, sample in enumerate(np.split(samples, len(samples)), 1):
        state, energies = push(features, state, sample)
        frames += len(energies)
        assert frames == features.frames(count)
