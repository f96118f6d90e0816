import librosa
import numpy as np
import pytest
import soundfile

from qkd_jax.audio.io import read_audio
from qkd_jax.config import InputError

SECONDS, PITCH = 0.5, 1000.0


def sine(rate, channels):
    """A sine whose channels have amplitudes 0.8, 0.4, 0.2: their mean tells mono from any one of them."""
    time = np.arange(round(SECONDS * rate)) / rate
    return np.sin(2 * np.pi * PITCH * time)[:, None] * [0.8, 0.4, 0.2][:channels]


def amplitude_at(samples, pitch, rate):
    """Amplitude of the sine of `pitch` Hz, away from the edges, where a resampler has no neighbours."""
    inner = samples[rate // 10 : -rate // 10]
    return 2 * abs(np.mean(inner * np.exp(-2j * np.pi * pitch * np.arange(len(inner)) / rate)))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_file_becomes_mono_at_16_khz(tmp_path, suffix, rate, channels):
    path = tmp_path / f"sine.{suffix}"
    written = sine(rate, channels)
    soundfile.write(path, written, rate)

    samples = read_audio(path)

    assert samples.dtype == np.float32
    assert samples.shape == (round(SECONDS * 16_000),)
    # Vorbis is lossy; the others lose 16-bit rounding and the resampler's ripple.
    tolerance = 0.02 if suffix == "ogg" else 1e-3
    assert amplitude_at(samples, PITCH, 16_000) == pytest.approx(written.max(axis=0).mean(), rel=tolerance)
    assert np.argmax(np.abs(np.fft.rfft(samples))) == SECONDS * PITCH


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_resampling_is_that_of_librosa(tmp_path, rate):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (rate // 4, 2))
    soundfile.write(tmp_path / "noise.wav", noise, rate, subtype="FLOAT")
    expected = librosa.resample(noise.mean(axis=1), orig_sr=rate, target_sr=16_000, res_type="soxr_hq")
    np.testing.assert_allclose(read_audio(tmp_path / "noise.wav"), expected, atol=1e-5)


def test_other_rates_can_be_asked_for(tmp_path):
    soundfile.write(tmp_path / "sine.wav", sine(16_000, 1), 16_000)
    samples = read_audio(str(tmp_path / "sine.wav"), 8000)
    assert amplitude_at(samples, PITCH, 8000) == pytest.approx(0.8, rel=1e-3)
    assert len(samples) == SECONDS * 8000


@pytest.mark.parametrize("content", [None, b"", b"not a recording\n" * 100], ids=["missing", "empty", "text"])
@pytest.mark.parametrize("suffix", ["wav", "ogg", "raw"])
def test_what_is_no_recording_is_named(tmp_path, content, suffix):
    path = tmp_path / f"broken.{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"broken\.{suffix}.*expected a recording"):
        read_audio(path)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_recording_without_samples_is_named(tmp_path, rate):
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), rate)
    with pytest.raises(InputError, match=r"nothing\.wav: expected samples, found none"):
        read_audio(tmp_path / "nothing.wav")
