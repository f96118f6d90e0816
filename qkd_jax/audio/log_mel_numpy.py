"""Log-mel energies in NumPy."""

import numpy as np

from qkd_jax.audio.mel import mel_basis, window
from qkd_jax.config import FeatureConfig


def log_mel(features: FeatureConfig, samples: np.ndarray) -> np.ndarray:
    """log(mel energy + floor) of each frame of `samples`, float32 [frames, mels].

    `samples` is float32 [samples] with full scale 1.  Equal to `qkd_jax.audio.log_mel.log_mel` within the
    precision of float32.  A frame depends on its own samples alone, bit for bit.  Raises TypeError for
    integers, whose full scale is unknown.

    >>> log_mel(FeatureConfig(), np.zeros(16_000, np.float32)).shape
    (98, 64)
    """
    if samples.dtype.kind != "f":
        raise TypeError(
            f"samples: expected floats of full scale 1, got {samples.dtype}; divide int16 by 32768"
        )
    if not features.frames(len(samples)):
        return np.zeros((0, features.n_mels), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, features.win_length)[:: features.hop_length]
    spectrum = np.fft.rfft(frames * window(features), features.n_fft)
    power = spectrum.real**2 + spectrum.imag**2
    # One product per frame: a matrix product sums in an order that depends on the number of frames.
    energies = (power[:, None] @ mel_basis(features))[:, 0]
    return np.log(energies + np.float32(features.floor))
