"""Eq. 3 and log-mel energies in float64, and the transformations of JAX that code is called through."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def recovered(v, bits, axis=None, *, near=0.0):
    """Eq. 3 and back in float64, with one range over `axis`; 32 bits are off.

    Fails if a value is within `near` of a tie, where float32 may round the other way.
    """
    v = np.float64(v)
    if bits == 32:
        return v
    low, spread = v.min(axis, keepdims=True), np.ptp(v, axis, keepdims=True)
    scale = np.where(spread > 0, spread / (2**bits - 1), 1)
    position = (v - low) / scale
    assert np.abs(position % 1 - 0.5).min() >= near
    return np.rint(position) * scale + low


def straight_through(v, bits, axis=-1):
    """Eq. 3 and back in JAX, in plain autodiff with the identity as its gradient; 32 bits are off."""
    if bits == 32:
        return v
    low, high = v.min(axis, keepdims=True), v.max(axis, keepdims=True)
    scale = jnp.where(high > low, (high - low) / (2**bits - 1), 1)
    return v + jax.lax.stop_gradient(jnp.round((v - low) / scale) * scale + low - v)


def librosa_log_mel(waveform, config):
    """Log-mel energies by librosa, in float64 [frames, mels]."""
    # librosa centres a window in its FFT frame: padding by the difference aligns it with ours.
    padded = np.pad(np.asarray(waveform, np.float64), (config.n_fft - config.win_length) // 2)
    window = {"n_fft": config.n_fft, "win_length": config.win_length, "hop_length": config.hop_length}
    spectrum = librosa.stft(padded, center=False, **window)
    mels = {"n_mels": config.n_mels, "fmin": config.fmin, "fmax": config.fmax, "dtype": np.float64}
    basis = librosa.filters.mel(sr=config.sample_rate, n_fft=config.n_fft, **mels)
    return np.log(basis @ np.abs(spectrum) ** 2 + config.floor).T


# Each calls f row by row, or as a whole; `axes` are 0 for arguments with rows, None for the others.


def jitted(f, axes=(0,)):
    return jax.jit(f)


def mapped(f, axes=(0,)):
    return jax.jit(jax.vmap(f, in_axes=axes))


def scanned(f, axes=(0,)):
    def call(*arguments):
        def body(carry, rows):
            row = iter(rows)
            return carry, f(*(arg if axis is None else next(row) for arg, axis in zip(arguments, axes)))

        return jax.lax.scan(body, None, [arg for arg, axis in zip(arguments, axes) if axis == 0])[1]

    return jax.jit(call)


def remat(f, axes=(0,)):
    return jax.jit(jax.checkpoint(f))


def sharded(f, axes=(0,)):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    specs = tuple(P() if axis is None else P("data") for axis in axes)
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P("data")))


def data_parallel_gradient(loss, axes):
    """The gradient in the first argument of the sum of `loss` over two devices, to which rows are sharded."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    specs = tuple(P() if axis is None else P("data") for axis in axes)
    gradient = jax.grad(lambda *arguments: jax.lax.psum(loss(*arguments), "data"))
    return jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=P()))
