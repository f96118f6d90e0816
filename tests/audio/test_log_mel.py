"""Log-mel energies in JAX and in NumPy: equal to librosa's, and a frame depends on its samples alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.audio import log_mel_numpy
from qkd_jax.audio.log_mel import log_mel
from qkd_jax.config import FeatureConfig
from tests.oracles import librosa_log_mel

log_mel_jit = jax.jit(log_mel, static_argnames="config")
PAPER = FeatureConfig()
SMALL = FeatureConfig(n_mels=32, hop_length=200, fmin=0.0, fmax=7000.0, floor=1e-3)
NARROW = FeatureConfig(sample_rate=8000, win_length=256, hop_length=80, n_fft=256, n_mels=40, fmax=4000.0)
SPARSE = FeatureConfig(win_length=200, hop_length=700, n_fft=256, n_mels=20)
CONFIGS = {"paper": PAPER, "small": SMALL, "narrow": NARROW, "sparse": SPARSE}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def sines(samples):
    time = np.arange(samples) / 16_000
    return (0.5 * np.sin(2 * np.pi * 440 * time) + 0.5 * np.sin(2 * np.pi * 3100 * time)).astype(np.float32)


def click(samples):
    return np.where(np.arange(samples) == samples // 2, np.float32(1), np.float32(0))


def silence(samples):
    return np.zeros(samples, np.float32)


def swelling(samples):
    """Noise between silence and full scale."""
    return 10 * noise(samples).clip(-0.1, 0.1) * np.float32(np.sin(np.arange(samples) / 900) ** 8)


@configs
@pytest.mark.parametrize("signal", [noise, sines, click, silence, swelling])
def test_equals_librosa_in_float64(signal, config):
    waveform = signal(9000)
    in_jax, in_numpy = log_mel(jnp.asarray(waveform), config), log_mel_numpy.log_mel(config, waveform)
    assert in_numpy.dtype == np.float32
    # This compares shapes too: there are as many frames as librosa's.
    for energies in (in_jax, in_numpy):
        np.testing.assert_allclose(energies, librosa_log_mel(waveform, config), atol=1e-3)
    np.testing.assert_allclose(in_numpy, in_jax, rtol=0, atol=1e-3)


@configs
def test_in_numpy_a_frame_depends_on_its_samples_alone_bit_for_bit(config):
    samples = swelling(20_000)
    energies = log_mel_numpy.log_mel(config, samples)
    assert len(energies) == config.frames(len(samples)) > 20
    for frame, row in enumerate(energies):
        begin = frame * config.hop_length
        alone = log_mel_numpy.log_mel(config, samples[begin : begin + config.win_length].copy())
        np.testing.assert_array_equal(alone, row[None])


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (160_000, 998)]
)
def test_no_frame_is_padded_or_partial(samples, frames):
    assert PAPER.frames(samples) == frames
    assert log_mel(jnp.zeros(samples)).shape == (frames, 64)


@pytest.mark.parametrize("shift", [1, 7, 20])
def test_a_shift_by_whole_hops_shifts_the_rows_bit_for_bit(shift):
    waveform = jnp.asarray(noise(8000))
    whole, late = log_mel_jit(waveform), log_mel_jit(waveform[shift * PAPER.hop_length :])
    np.testing.assert_array_equal(late, whole[shift:])


@pytest.mark.parametrize("size", [1, 5, 16])
def test_a_stream_in_chunks_gives_what_the_whole_gives_bit_for_bit(size):
    waveform = jnp.asarray(noise(8000))
    whole = log_mel_jit(waveform)

    def chunk(first):
        last = min(first + size, len(whole)) - 1
        return log_mel_jit(waveform[first * PAPER.hop_length : last * PAPER.hop_length + PAPER.win_length])

    glued = jnp.concatenate([chunk(first) for first in range(0, len(whole), size)])
    np.testing.assert_array_equal(glued, whole)


def test_batch_dimensions_are_kept_and_clips_do_not_mix():
    waveforms = jnp.asarray(noise(6 * 1600).reshape(2, 3, 1600))
    energies = log_mel(waveforms)
    assert energies.shape == (2, 3, 8, 64)
    np.testing.assert_array_equal(energies[1, 2], log_mel(waveforms[1, 2]))


@pytest.mark.parametrize("config", [PAPER, SMALL], ids=["paper", "small"])
def test_jit_and_vmap_change_nothing(config):
    waveforms = jnp.asarray(noise(3 * 1600).reshape(3, 1600))
    expected = log_mel(waveforms, config)
    transformed = jax.jit(jax.vmap(functools.partial(log_mel, config=config)))(waveforms)
    np.testing.assert_allclose(transformed, expected, atol=1e-4)


def test_gradient_is_the_slope_of_librosas_energies():
    waveform, direction = noise(1200), noise(1200, seed=1)
    step = 1e-4 * np.asarray(direction, np.float64)
    slope = (librosa_log_mel(waveform + step, PAPER) - librosa_log_mel(waveform - step, PAPER)).sum() / 2e-4
    gradient = jax.grad(lambda x: log_mel(x).sum())(jnp.asarray(waveform))
    assert np.dot(gradient, direction) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8])
def test_integers_are_refused_because_their_scale_is_unknown(dtype):
    with pytest.raises(
        TypeError, match=f"expected floats of full scale 1, got {np.dtype(dtype)}; divide int16"
    ):
        log_mel(jnp.zeros(1000, dtype))
