"""The mel filters and the window, against librosa and SciPy."""

import librosa
import numpy as np
import pytest
import scipy.signal

from qkd_jax.audio.mel import mel_basis, mel_edges, window
from qkd_jax.config import FeatureConfig

CONFIGS = [
    FeatureConfig(),
    FeatureConfig(n_mels=32, fmin=0.0),
    FeatureConfig(sample_rate=44_100, n_fft=2048, win_length=1764, fmax=22_050.0, n_mels=128),
    FeatureConfig(fmin=1000.0),
    FeatureConfig(fmin=1500.0, fmax=4000.0),
    FeatureConfig(fmax=900.0, n_mels=12),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_filters_are_librosas(config):
    settings = {"sr": config.sample_rate, "n_fft": config.n_fft, "n_mels": config.n_mels}
    expected = librosa.filters.mel(**settings, fmin=config.fmin, fmax=config.fmax).T
    np.testing.assert_allclose(mel_basis(config), expected, rtol=0, atol=1e-8)
    edges = librosa.mel_frequencies(config.n_mels + 2, fmin=config.fmin, fmax=config.fmax)
    np.testing.assert_allclose(mel_edges(config), edges, rtol=1e-12)


@pytest.mark.parametrize("config", CONFIGS[:3])
def test_window_is_the_periodic_hann(config):
    np.testing.assert_allclose(window(config), scipy.signal.get_window("hann", config.win_length), atol=1e-7)
