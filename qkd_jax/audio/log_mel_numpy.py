"""Log-mel energies in NumPy."""

import numpy as np

from qkd_jax.audio.mel import mel_basis, window
from qkd_jax.config import FeatureConfig


def log_mel(features: FeatureConfig, samples: np.ndarray) -> np.ndarray:
    """log(mel energy + floor) of each frame of `samples`, float32 [frames, mels].

    `samples` is float32 [samples], full scale 1.  What `audio.logmel.log_mel` gives, within the precision of
    float32.  Each frame's values depend on its samples alone, bit for bit.
    """
    if not features.frames(len(samples)):
        return np.zeros((0, features.n_mels), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, features.win_length)[:: features.hop_length]
    spectrum = np.fft.rfft(frames * window(features), features.n_fft)
    power = spectrum.real**2 + spectrum.imag**2
    # A product for each frame: that of a matrix would sum in an order that depends on how many there are.
    energies = (power[:, None] @ mel_basis(features))[:, 0]
    return np.log(energies + np.float32(features.floor))
