import tracemalloc

import librosa
import numpy as np
import pytest
import soundfile

from qkd_jax.audio.reading import audio_blocks, read_audio
from qkd_jax.errors import InputError

SECONDS, PITCH = 0.5, 1000.0


def sine(rate, channels):
    """A sine whose channels have amplitudes 0.8, 0.4, 0.2: their mean tells mono from any one of them."""
    time = np.arange(round(SECONDS * rate)) / rate
    return np.sin(2 * np.pi * PITCH * time)[:, None] * [0.8, 0.4, 0.2][:channels]


def noise(seconds, rate=16_000, channels=1):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * rate), channels))
    return samples.astype(np.float32).squeeze()


def amplitude_at(samples, pitch, rate):
    """Amplitude of the sine of `pitch` Hz, away from the edges, where resampling is inexact."""
    inner = samples[rate // 10 : -rate // 10]
    return 2 * abs(np.mean(inner * np.exp(-2j * np.pi * pitch * np.arange(len(inner)) / rate)))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_file_becomes_mono_at_16_khz(tmp_path, suffix, rate, channels):
    path, written = tmp_path / f"sine.{suffix}", sine(rate, channels)
    soundfile.write(path, written, rate)
    samples = read_audio(path)
    assert samples.dtype == np.float32 and samples.shape == (round(SECONDS * 16_000),)
    # Vorbis is lossy; the others lose 16-bit rounding and the resampler's ripple.
    tolerance = 0.02 if suffix == "ogg" else 1e-3
    assert amplitude_at(samples, PITCH, 16_000) == pytest.approx(written.max(axis=0).mean(), rel=tolerance)
    assert np.argmax(np.abs(np.fft.rfft(samples))) == SECONDS * PITCH


def test_other_rates_can_be_asked_for(tmp_path):
    soundfile.write(tmp_path / "sine.wav", sine(16_000, 1), 16_000)
    samples = read_audio(str(tmp_path / "sine.wav"), 8000)
    assert amplitude_at(samples, PITCH, 8000) == pytest.approx(0.8, rel=1e-3)
    assert len(samples) == SECONDS * 8000


@pytest.mark.parametrize("content", [None, b"", b"not a recording\n" * 100], ids=["missing", "empty", "text"])
@pytest.mark.parametrize("suffix", ["wav", "ogg", "raw"])
def test_a_file_that_is_not_a_recording_is_named(tmp_path, content, suffix):
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


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_a_long_recording_comes_in_blocks_that_join_to_the_whole_as_resampled_by_librosa(tmp_path, rate):
    path, samples = tmp_path / "long.wav", noise(70, rate, channels=2)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    blocks = list(audio_blocks(path))
    assert len(blocks) >= 3 and max(map(len, blocks)) <= 31 * 16_000
    whole = librosa.resample(samples.mean(axis=1), orig_sr=rate, target_sr=16_000, res_type="soxr_hq")
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)
    np.testing.assert_array_equal(read_audio(path), np.concatenate(blocks))


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "aiff", "w64", "rf64", "au", "caf"])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_recording_that_is_cut_off_is_named(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, noise(4), 16_000)
    assert len(read_audio(path)) == 4 * 16_000
    content = path.read_bytes()
    path.write_bytes(content[: round(share * len(content))])
    message = rf"cut\.{suffix}: (cut off|expected a recording that libsndfile reads)"
    with pytest.raises(InputError, match=message):
        read_audio(path)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_named(tmp_path, wrong, rate):
    samples = noise(1, rate)
    samples[rate // 2] = wrong
    soundfile.write(tmp_path / "broken.wav", samples, rate, subtype="FLOAT")
    with pytest.raises(InputError, match=r"broken\.wav: expected finite samples, found NaN or infinity"):
        read_audio(tmp_path / "broken.wav")


@pytest.mark.parametrize("value", [0.0, -0.25])
def test_silence_is_read(tmp_path, value):
    soundfile.write(tmp_path / "silent.wav", np.full((40 * 8000, 2), value), 8000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "silent.wav", 8000), np.full(40 * 8000, value))


@pytest.mark.parametrize("peak", [9.9, 10.1, 20_000])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_samples_far_beyond_full_scale_are_refused(tmp_path, peak, subtype):
    soundfile.write(tmp_path / "loud.wav", np.array([0.1, -peak, 0.2]), 16_000, subtype=subtype)
    if peak < 10:
        np.testing.assert_allclose(read_audio(tmp_path / "loud.wav"), [0.1, -peak, 0.2], rtol=1e-6)
        return
    message = rf"loud\.wav: expected samples within ±1 \(full scale\), found {peak:g}; divide int16 by 32768"
    with pytest.raises(InputError, match=message):
        read_audio(tmp_path / "loud.wav")


@pytest.mark.parametrize("rest", [0.0, 1e-4])
@pytest.mark.parametrize("seconds", [1, 40])
def test_channels_that_cancel_each_other_are_said_and_one_can_be_read(tmp_path, rest, seconds):
    """The mean of a balanced line's two channels was refused as "silent"."""
    one = noise(seconds)
    soundfile.write(tmp_path / "xlr.wav", np.stack([one, (rest - 1) * one], axis=1), 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"xlr\.wav: the channels cancel each other.*--data\.channel 1"):
        read_audio(tmp_path / "xlr.wav")
    np.testing.assert_array_equal(read_audio(tmp_path / "xlr.wav", channel=1), one)
    np.testing.assert_array_equal(read_audio(tmp_path / "xlr.wav", channel=2), np.float32(rest - 1) * one)


@pytest.mark.parametrize("rate", [1, 249])
def test_very_low_rates_are_refused(tmp_path, rate):
    path = tmp_path / "odd.wav"
    soundfile.write(path, noise(0.1), 16_000, subtype="PCM_16")
    content = path.read_bytes()
    path.write_bytes(content[:24] + rate.to_bytes(4, "little") + content[28:])
    with pytest.raises(InputError, match=rf"odd\.wav: expected at least 250 samples .*, found {rate}"):
        read_audio(path)


def test_a_header_of_many_samples_takes_no_memory(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.stack([noise(0.1)] * 8, axis=1), 192_000)
    content = bytearray(path.read_bytes())
    # A header with 655350 Hz and 2^36 - 1 samples.
    rate_channels_bits = int.from_bytes(content[18:21], "big")
    content[18:21] = ((655_350 << 4) | (rate_channels_bits & 0xF)).to_bytes(3, "big")
    content[21] |= 0xF
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"long\.flac: "):
        read_audio(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # 30 s would be 630 MB
