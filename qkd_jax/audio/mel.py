"""Mel filters and window of the log-mel energies, in NumPy."""

import functools

import numpy as np

from qkd_jax.config import FeatureConfig


def mel_edges(config: FeatureConfig) -> np.ndarray:
    """Where the mel filters begin, peak and end, in Hz, float64 [n_mels + 2]: evenly spaced in mels."""
    return _mel_to_hz(np.linspace(_hz_to_mel(config.fmin), _hz_to_mel(config.fmax), config.n_mels + 2))


@functools.cache
def mel_basis(config: FeatureConfig) -> np.ndarray:
    """Slaney's mel filters, float32 [n_fft / 2 + 1, n_mels]: triangles of area 1 over the power spectrum.

    Slaney's scale is linear below 1000 Hz (200/3 Hz per mel) and logarithmic above (27 mels per factor of
    6.4).  Equal to `librosa.filters.mel`; importing librosa would take longer than running a detector.

    >>> mel_basis(FeatureConfig()).shape
    (257, 64)
    """
    edges = mel_edges(config)
    frequencies = np.linspace(0, config.sample_rate / 2, config.n_fft // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * 2 / (edges[2:] - edges[:-2])).astype(np.float32)


@functools.cache
def window(config: FeatureConfig) -> np.ndarray:
    """The periodic Hann window, float32 [win_length]."""
    n = np.arange(config.win_length)
    return (0.5 - 0.5 * np.cos(2 * np.pi * n / config.win_length)).astype(np.float32)


_LINEAR, _BEND, _STEP = 200 / 3, 1000.0, np.log(6.4) / 27
"""Hz per mel below the bend, the bend in Hz, and the logarithm of the ratio per mel above it."""


def _hz_to_mel(frequency: float) -> float:
    if frequency < _BEND:
        return frequency / _LINEAR
    return _BEND / _LINEAR + np.log(frequency / _BEND) / _STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    beyond = np.maximum(mel - _BEND / _LINEAR, 0)
    return np.where(beyond > 0, _BEND * np.exp(_STEP * beyond), mel * _LINEAR)
