"""Log-mel energies in JAX."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from qkd_jax.audio.mel import mel_basis, window
from qkd_jax.config import FeatureConfig

TILE = 48
"""Frames computed at once: enough to keep the vector units of a core busy."""


@functools.partial(jax.jit, static_argnames="config")
def log_mel(
    waveform: Num[Array, "*batch samples"], config: FeatureConfig = FeatureConfig()
) -> Float[Array, "*batch frames mel"]:
    """log(mel energy + floor) of each frame of `waveform`, whose full scale is 1.

    Frames of win_length samples every hop_length, none padded; periodic Hann window; zero-padded to n_fft;
    power spectrum; Slaney mel bands.  Equal to librosa within the precision of float32.  Frames are computed
    in tiles of a fixed shape, so a frame depends on its own samples alone, bit for bit: a stream in chunks
    gives the same values as the whole clip.  Raises TypeError for integers, whose full scale is unknown.

    >>> log_mel(jnp.zeros(160_000)).shape
    (998, 64)
    """
    if not jnp.issubdtype(waveform.dtype, jnp.floating):
        raise TypeError(
            f"waveform: expected floats of full scale 1, got {waveform.dtype}; divide int16 by 32768"
        )
    hann, basis = jnp.asarray(window(config)), jnp.asarray(mel_basis(config))

    frames = config.frames(waveform.shape[-1])
    tiles = -(-frames // TILE)
    # The last tile is filled up with copies of the last frame.
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
