"""Log-mel energies in JAX, frame by frame."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.audio.mel import mel_basis, window
from qkd_jax.config import FeatureConfig


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
    hann, basis = jnp.asarray(window(config)), jnp.asarray(mel_basis(config))

    starts = jnp.arange(config.frames(waveform.shape[-1])) * config.hop_length

    def frame_energies(signal: jax.Array, start: jax.Array) -> jax.Array:
        frame = jax.lax.dynamic_slice_in_dim(signal, start, config.win_length) * hann
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
