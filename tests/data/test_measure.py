"""What is measured of a recording: length, level, channels, band limit, and equal samples."""

import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import butter, sosfilt

from qkd_jax.audio.reading import audio_blocks
from qkd_jax.config import FeatureConfig
from qkd_jax.data import measure as module
from qkd_jax.data.features import recording_features
from qkd_jax.data.measure import SILENT, is_silent, measure, measure_all
from qkd_jax.errors import InputError
from tests.faults import refused
from tests.recordings import noise, record

FEATURES = FeatureConfig()


@pytest.fixture
def measured(tmp_path):
    """The function (samples, rate, name) -> measurements of a recording of them, as floats in WAV."""

    def of(samples, rate=16_000, name="a.wav"):
        record(tmp_path, name, samples, rate)
        return measure(tmp_path / name, FEATURES)

    return of


def test_lengths_levels_and_offsets(measured):
    samples = noise(24_000)
    found = measured(samples)
    assert (found.fault, found.seconds, found.rate, found.form) == ("", 1.5, 16_000, ".wav")
    assert found.level == pytest.approx(10 * np.log10(np.mean(samples.astype(np.float64) ** 2)), abs=1e-4)
    assert found.offset == pytest.approx(samples.mean(), abs=1e-6)
    assert found.channel_levels == (pytest.approx(found.level),) and not found.same_channels
    assert found.clipped == 0
    assert measured(samples / 2 + 0.1).offset == pytest.approx(samples.mean() / 2 + 0.1, abs=1e-6)
    slow = measured(noise(12_000), 8000)
    assert (slow.seconds, slow.rate) == (1.5, 8000)


@pytest.mark.parametrize("late", [0, 1, 16_050, 500_000])
def test_a_recording_is_silent_if_its_features_are(measured, tmp_path, late):
    """Wherever in it the only sound is, and in whatever piece it is read."""
    samples = 1e-6 * noise(505_000)
    for peak, silent in ((0.0, True), (1e-2, False)):
        samples[late : late + 400] += peak
        found = measured(samples)
        features = recording_features(tmp_path / "a.wav", FEATURES)
        assert found.silent == is_silent(features, FEATURES) == silent and found.level > SILENT


def test_channels(measured):
    samples = noise(16_000)
    both = measured(np.stack([samples, samples], 1))
    assert both.same_channels and both.level == pytest.approx(both.channel_levels[0])
    dead = measured(np.stack([samples, 0 * samples], 1))
    assert not dead.same_channels and dead.channel_levels == (pytest.approx(both.level), -200)
    assert dead.level == pytest.approx(both.level - 20 * np.log10(2))
    opposite = measured(np.stack([samples, -0.99 * samples], 1))
    assert opposite.level == pytest.approx(both.level - 20 * np.log10(200), abs=0.01)
    clipped = np.zeros((1000, 2), np.float32)
    clipped[:30, 1] = -1
    assert measured(clipped).clipped == 0.03


def test_the_band_limit_is_that_of_the_recording(measured):
    assert measured(noise(32_000)).band == 8000
    assert measured(noise(16_000), 8000).band == pytest.approx(4000, rel=0.1)
    telephone = sosfilt(butter(20, 3400, fs=16_000, output="sos"), noise(32_000))
    # Wherever the level is.
    assert measured(telephone).band == measured(telephone / 1000).band == pytest.approx(4200, rel=0.2)


@pytest.mark.parametrize(
    ("name", "form"),
    [("b.flac", {}), ("b.aiff", {}), ("b.wav", {"subtype": "PCM_24"}), ("b.caf", {"subtype": "FLOAT"})],
)
@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_equal_samples_have_one_digest_in_any_lossless_format(tmp_path, name, form, rate):
    samples = np.round(noise(rate) * 2**15) / 2**15
    samples[:100] = -0.0
    soundfile.write(tmp_path / "a.wav", samples, rate)
    soundfile.write(tmp_path / name, samples, rate, **form)
    digest = measure(tmp_path / "a.wav", FEATURES).digest
    assert digest and measure(tmp_path / name, FEATURES).digest == digest
    soundfile.write(tmp_path / name, np.roll(samples, 1), rate, **form)
    assert measure(tmp_path / name, FEATURES).digest != digest


def test_faults_are_those_of_reading(tmp_path):
    whole, cut = tmp_path / "whole.wav", tmp_path / "cut.wav"
    record(tmp_path, "whole.wav", noise(16_000))
    cut.write_bytes(whole.read_bytes()[:40_000])
    (tmp_path / "empty.wav").write_bytes(b"")
    record(tmp_path, "silent.wav", np.zeros(16_000))
    record(tmp_path, "nan.wav", np.full(16_000, np.nan))
    for path in (cut, tmp_path / "empty.wav", tmp_path / "nan.wav"):
        found = measure(path, FEATURES)
        with pytest.raises(InputError) as caught:
            list(audio_blocks(path))
        assert found.fault == str(caught.value) and found.digest == b""
    silent = measure(tmp_path / "silent.wav", FEATURES)
    assert (silent.fault, silent.level, silent.digest) == ("", SILENT, b"")  # an error only with a label
    assert measure(tmp_path / "none.wav", FEATURES).fault.endswith(
        "none.wav: expected a recording, found none"
    )
    record(tmp_path, "short.wav", noise(100))
    assert measure(tmp_path / "short.wav", FEATURES).fault.endswith(
        "at least 400 samples at 16000 Hz, found 100"
    )


def test_many_recordings_are_measured_in_other_processes_in_order(tmp_path, monkeypatch):
    paths = [tmp_path / f"{index}.wav" for index in range(4)]
    for index, path in enumerate(paths):
        record(tmp_path, path.name, noise(1000 * (index + 1)))
    here = list(measure_all(paths, FEATURES))
    monkeypatch.setattr(module, "_FEW", 2)
    # A new process imports the program that runs; of pytest it needs nothing.
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert list(measure_all(paths, FEATURES)) == here
    assert [each.seconds for each in here] == [(index + 1) / 16 for index in range(4)]


class _Broken:
    """A pool whose process was killed."""

    def __init__(self, *arguments):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def map(self, *arguments, **settings):
        raise BrokenProcessPool

    def shutdown(self, **settings):
        pass


def test_a_process_that_dies_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr(module, "ProcessPoolExecutor", _Broken)
    with refused("reading the recordings: expected every process to end well, found one killed"):
        list(measure_all([Path("a.wav")] * 100, FEATURES))
