"""Log-mel energies in JAX, frame by frame."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkd_jax.config import FeatureConfig


@functools.cache
def _mel_basis(config: FeatureConfig) -> np.ndarray:
    """Librosa's Slaney mel filters, [n_fft / 2 + 1, n_mels]."""
    import librosa

    return librosa.filters.mel(
        sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.n_mels, fmin=config.fmin, fmax=config.fmax
    ).T


@functools.cache
def _window(config: FeatureConfig) -> np.ndarray:
    """The periodic Hann window, [win_length]."""
    n = np.arange(config.win_length)
    return (0.5 - 0.5 * np.cos(2 * np.pi * n / config.win_length)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="config")
def log_mel(
    waveform: Float[Array, "*batch samples"], config: FeatureConfig = FeatureConfig()
) -> Float[Array, "*batch frames mel"]:
    """log(mel energy + floor) of each frame of `waveform` (full scale is 1).

    Frames of win_length samples every hop_length, none padded; Hann; zero-padded to n_fft;
    power spectrum; Slaney mel bands.  Equal to librosa's within float32.  Each frame is
    computed in a shape of its own, so a frame's values depend on its samples alone, bit for
    bit: a stream in chunks gives what the whole clip gives.
    """
    window, basis = jnp.asarray(_window(config)), jnp.asarray(_mel_basis(config))

    starts = jnp.arange(config.frames(waveform.shape[-1])) * config.hop_length

    def frame_energies(signal: jax.Array, start: jax.Array) -> jax.Array:
        frame = jax.lax.dynamic_slice_in_dim(signal, start, config.win_length) * window
        spectrum = jnp.fft.rfft(frame, config.n_fft)
        power = spectrum.real**2 + spectrum.imag**2
        energies = jnp.matmul(power, basis, precision=jax.lax.Precision.HIGHEST)
        return jnp.log(energies + config.floor)

    def clip_energies(signal: jax.Array) -> jax.Array:
        return jax.lax.map(functools.partial(frame_energies, signal), starts)

    if not len(starts):
        return jnp.zeros((*waveform.shape[:-1], 0, config.n_mels), jnp.float32)
    flat = waveform.astype(jnp.float32).reshape(-1, waveform.shape[-1])
    return jax.lax.map(clip_energies, flat).reshape(*waveform.shape[:-1], len(starts), config.n_mels)
