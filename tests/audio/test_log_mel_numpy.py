"""Log-mel energies in NumPy: equal to librosa's, and a frame depends on its samples alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.audio.log_mel import log_mel as log_mel_in_jax
from qkd_jax.audio.log_mel_numpy import log_mel
from qkd_jax.config import FeatureConfig
from tests.oracles import librosa_log_mel

PAPER = FeatureConfig()
SMALL = FeatureConfig(n_mels=32, hop_length=200, fmin=0.0, fmax=7000.0, floor=1e-3)
NARROW = FeatureConfig(sample_rate=8000, win_length=256, hop_length=80, n_fft=256, n_mels=40, fmax=4000.0)
SPARSE = FeatureConfig(win_length=200, hop_length=700, n_fft=256, n_mels=20)
CONFIGS = pytest.mark.parametrize(
    "features", [PAPER, SMALL, NARROW, SPARSE], ids=["paper", "small", "narrow", "sparse"]
)


def sound(samples, seed=0):
    """Noise between silence and full scale."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(-1, 1, samples) * np.sin(np.arange(samples) / 900) ** 8).astype(np.float32)


@CONFIGS
def test_equals_librosa_in_float64_and_jax(features):
    samples = sound(9000)
    energies = log_mel(features, samples)
    assert energies.dtype == np.float32
    np.testing.assert_allclose(energies, librosa_log_mel(samples, features), rtol=0, atol=1e-3)
    np.testing.assert_allclose(energies, log_mel_in_jax(jnp.asarray(samples), features), rtol=0, atol=1e-3)


@CONFIGS
def test_a_frame_depends_on_its_samples_alone_bit_for_bit(features):
    samples = sound(20_000)
    energies = log_mel(features, samples)
    assert len(energies) == features.frames(len(samples)) > 20
    for frame, begin in enumerate(range(0, len(energies) * features.hop_length, features.hop_length)):
        alone = log_mel(features, samples[begin : begin + features.win_length].copy())
        np.testing.assert_array_equal(alone, energies[frame : frame + 1])
