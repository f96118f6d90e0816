"""Log-mel energies in JAX."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.audio.mel import mel_basis, window
from qkd_jax.config import FeatureConfig

TILE = 48
"""Frames that are computed at once: enough for transforms and products to fill a core's registers."""


@functools.partial(jax.jit, static_argnames="config")
def log_mel(
    waveform: Float[Array, "*batch samples"], config: FeatureConfig = FeatureConfig()
) -> Float[Array, "*batch frames mel"]:
    """log(mel energy + floor) of each frame of `waveform` (full scale is 1).

    Frames of win_length samples every hop_length, none padded; Hann; zero-padded to n_fft;
    power spectrum; Slaney mel bands.  Equal to librosa's within float32.  Frames are
    computed in tiles of one shape, so a frame's values depend on its samples alone, bit for
    bit: a stream in chunks gives what the whole clip gives.
    """
    hann, basis = jnp.asarray(window(config)), jnp.asarray(mel_basis(config))

    frames = config.frames(waveform.shape[-1])
    tiles = -(-frames // TILE)
    # What is left of the last tile are copies of the last frame.
    starts = jnp.minimum(jnp.arange(tiles * TILE), frames - 1) * config.hop_length

    def tile_energies(signal: jax.Array, starts: jax.Array) -> jax.Array:
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, signal, slice_size=config.win_length)
        spectrum = jnp.fft.rfft(jax.vmap(cut)(starts) * hann[None], config.n_fft)
        power = spectrum.real**2 + spectrum.imag**2
        energies = jnp.matmul(power, basis, precision=jax.lax.Precision.HIGHEST)
        return jnp.log(energies + config.floor)

    def clip_energies(signal: jax.Array) -> jax.Array:
        energies = jax.lax.map(functools.partial(tile_energies, signal), starts.reshape(tiles, TILE))
        return energies.reshape(-1, config.n_mels)[:frames]

    if not frames:
        return jnp.zeros((*waveform.shape[:-1], 0, config.n_mels), jnp.float32)
    flat = waveform.astype(jnp.float32).reshape(-1, waveform.shape[-1])
    return jax.lax.map(clip_energies, flat).reshape(*waveform.shape[:-1], frames, config.n_mels)
