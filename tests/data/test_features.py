"""Features of recordings are exact, computed once and cached whole; unusable recordings are named."""

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose, assert_array_equal

from qkd_jax.audio.log_mel import log_mel
from qkd_jax.config import FeatureConfig, RunConfig
from qkd_jax.data import features as features_module
from qkd_jax.data.cache import read_entry
from qkd_jax.data.features import CachedFeatures, cached_features, mean_and_std, recording_features
from qkd_jax.run_folder.run import Run
from tests import recordings
from tests.faults import refused
from tests.recordings import noise, traced

CONFIG = FeatureConfig(n_mels=32)


@pytest.fixture
def record(tmp_path):
    return functools.partial(recordings.record, tmp_path)


@pytest.fixture
def entry(record, tmp_path):
    """The cache's file for one recording, a.wav."""
    return cached_features([record("a.wav", noise(16_000))], CONFIG, tmp_path / "cache")[0][0]


@pytest.fixture
def computed(monkeypatch):
    """A growing list of the recordings whose features are computed."""
    paths = []

    def noted(path, config, channel):
        paths.append(path)
        return recording_features(path, config, channel)

    monkeypatch.setattr(features_module, "recording_features", noted)
    return paths


def replace_header(path, header):
    """Put another header in front of an array."""
    content = path.read_bytes()
    rest = content[10 + int.from_bytes(content[8:10], "little") :]
    header = header.encode() + b"\n"
    path.write_bytes(content[:8] + len(header).to_bytes(2, "little") + header + rest)


@pytest.mark.parametrize("samples", [400, 7001, 15_999, 16_000, 21_337, 31 * 16_000 + 77, 64 * 16_000])
def test_features_equal_those_of_the_samples_bit_for_bit(record, samples):
    # The longest recordings are read in several blocks.
    waveform = noise(samples)
    features = recording_features(record("a.wav", waveform).path, CONFIG)
    assert_array_equal(features, log_mel(jnp.asarray(waveform), CONFIG))


def test_recordings_at_another_rate_are_resampled(record):
    waveforms = {rate: 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate) for rate in (8000, 16_000)}
    clips = [record(f"{rate}.wav", waveform, rate) for rate, waveform in waveforms.items()]
    low, high = (recording_features(clip.path, CONFIG) for clip in clips)
    band = high[50].argmax()
    assert_allclose(low[10:-10, band], high[10:-10, band], atol=0.01)


def test_each_recording_is_computed_once(record, tmp_path, computed):
    clips = [record(f"{index}.wav", noise(16_000 + 500 * index, index)) for index in range(6)]
    entries, bad = cached_features(clips, CONFIG, tmp_path / "cache")
    assert sorted(computed) == sorted(clip.path for clip in clips) and bad == {}
    kept = CachedFeatures(entries)
    for clip, features in zip(clips, kept):
        assert_array_equal(features, recording_features(clip.path, CONFIG))
    computed.clear()
    again, bad = cached_features(clips, CONFIG, tmp_path / "cache")
    assert list(again) == list(entries) and bad == {}
    more = [*clips, record("new.wav", noise(16_000, 9))]
    cached_features(more, CONFIG, tmp_path / "cache")
    assert computed == [more[-1].path]


def test_other_settings_and_changed_recordings_are_computed_again(record, tmp_path, computed):
    clip, cache = record("a.wav", noise(16_000)), tmp_path / "cache"

    def features(config=CONFIG):
        return np.array(np.load(cached_features([clip], config, cache)[0][0]))

    before = features()
    assert features(FeatureConfig(n_mels=16)).shape == (98, 16)
    assert len(computed) == 2
    record("a.wav", noise(16_000, seed=1))  # the same size
    os.utime(clip.path, ns=(0, 10**18))
    assert (features() != before).any()
    assert len(computed) == 3
    (tmp_path / "b").mkdir()
    twin = record("b/a.wav", noise(16_000))
    assert_array_equal(np.load(cached_features([twin], CONFIG, cache)[0][0]), before)
    assert len(computed) == 4


def header(shape="(98, 32)", descr="<f4"):
    return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"


HEADERS = [header(shape) for shape in ("(98, 2**63)", "(10**30, 32)", "(-98, 32)", "(True, 32)")]
HEADERS += [header(descr="|O"), header(descr=">f4"), "[" * 9000, "{'descr': '"]
ARRAYS = [np.zeros((98, 7), np.float32), np.zeros((98, 32)), np.zeros((0, 32), np.float32)]
ARRAYS += [np.zeros((32, 98), np.float32).T]


@pytest.mark.parametrize(
    "spoil",
    [
        *(lambda path, length=length: path.write_bytes(path.read_bytes()[:length]) for length in (0, -1, 50)),
        *(lambda path, array=array: np.save(path, array) for array in ARRAYS),
        lambda path: path.write_bytes(path.read_bytes().replace(b"(98, ", b"(99, ")),
        lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),  # an archive of nothing
        *(lambda path, header=header: replace_header(path, header) for header in HEADERS),
    ],
)
def test_a_damaged_entry_is_computed_again(record, entry, tmp_path, spoil):
    whole = entry.read_bytes()
    spoil(entry)
    assert entry.read_bytes() != whole
    again, bad = cached_features([recordings.clip("a.wav", root=tmp_path)], CONFIG, tmp_path / "cache")
    assert list(again) == [entry] and bad == {}
    assert entry.read_bytes() == whole


def test_an_interruption_leaves_whole_entries_only_and_keeps_them(record, tmp_path, monkeypatch):
    clips = [record(f"{index:02}.wav", noise(16_000, index)) for index in range(40)]
    compute, begun = recording_features, threading.Semaphore(10)

    def slow(path, config, channel):
        if not begun.acquire(blocking=False):
            raise KeyboardInterrupt
        return compute(path, config, channel)

    with monkeypatch.context() as patch:
        patch.setattr(features_module, "recording_features", slow)
        with pytest.raises(KeyboardInterrupt):
            cached_features(clips, CONFIG, tmp_path / "cache")
    done = list((tmp_path / "cache").rglob("*.npy"))
    assert len(done) == 10
    assert not list((tmp_path / "cache").rglob("*.part"))
    times = {path: path.stat().st_mtime_ns for path in done}
    entries, _ = cached_features(clips, CONFIG, tmp_path / "cache")
    assert len(entries) == 40
    assert {path: path.stat().st_mtime_ns for path in done} == times


def test_concurrent_calls_give_the_same_entries(record, tmp_path):
    clips = [record(f"{index}.wav", noise(16_000, index)) for index in range(8)]
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(cached_features, clips, CONFIG, tmp_path / "cache") for _ in range(3)]
    results = [call.result() for call in calls]
    assert [(list(entries), bad) for entries, bad in results] == [(list(results[0][0]), {})] * 3
    for clip, entry in zip(clips, results[0][0]):
        features = np.load(entry)
        assert_array_equal(features, recording_features(clip.path, CONFIG))


def wave(samples, rate=16_000, **options):
    return lambda path: soundfile.write(path, samples, rate, **options)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: None, "expected a recording, found none"),
        (lambda path: path.mkdir(), "expected a recording, found a folder"),
        (lambda path: path.write_bytes(b""), "expected a recording, found an empty file"),
        (lambda path: path.write_text("not a recording"), "expected a recording, found none that FFmpeg can"),
        (wave(np.zeros(0)), "expected samples, found none"),
        (wave(noise(399)), "expected at least 400 samples"),
        (wave(np.append(noise(9000), np.nan), subtype="FLOAT"), "expected finite samples, found NaN or inf"),
    ],
)
def test_an_unusable_recording_is_named_and_the_others_are_kept(record, tmp_path, make, error):
    good, path = record("good.wav", noise(16_000)), tmp_path / "bad.wav"
    make(path)
    long = 300 * "x" + ".wav"
    bad = [recordings.clip(name, root=tmp_path) for name in ("bad.wav", long)]
    entries, reasons = cached_features([*bad, good], CONFIG, tmp_path / "cache")
    assert [entry.is_file() for entry in entries] == [False, False, True]
    assert list(reasons) == ["bad.wav", long]
    assert reasons["bad.wav"].startswith(f"{path}: {error}")
    assert "\n" not in reasons["bad.wav"] and "File name too long" in reasons[long]


def test_a_long_recording_takes_little_more_memory_than_its_features(record):
    samples = 20 * 60 * 16_000
    path = record("long.wav", noise(samples)).path
    features, _, peak = traced(lambda: recording_features(path, CONFIG))
    assert len(features) == CONFIG.frames(samples)
    assert peak < 2.5 * features.nbytes + 20e6 < 4 * samples


def test_cached_features_take_no_memory(tmp_path):
    entries = [tmp_path / f"{index}.npy" for index in range(50)]
    for entry in entries:
        np.save(entry, np.ones((2000, 32), np.float32))
    slices, _, peak = traced(lambda: [item[1000:1010] for item in CachedFeatures(entries)])
    assert len(slices) == 50 and peak < 2000 * 32 * 4


def test_mean_and_standard_deviation_cover_all_frames():
    rng = np.random.default_rng(0)
    features = [rng.normal(-8, 3, (frames, 5)).astype(np.float32) for frames in (1, 40, 200)]
    mean, std = mean_and_std(features)
    frames = np.concatenate(features).astype(np.float64)
    assert_allclose([mean, std], [frames.mean(axis=0), frames.std(axis=0)], rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32
    # A constant band is finite after normalization.
    for each in features:
        each[:, 1] = np.log(1e-6)
    mean, std = mean_and_std(features)
    normalized = (np.concatenate(features) - mean) / std
    assert np.isfinite(normalized).all() and np.abs(normalized[:, 1]).max() < 1


def test_features_can_be_computed_without_a_cpu_backend(record, monkeypatch):
    path = record("a.wav", noise(16_000)).path
    expected = recording_features(path, CONFIG)

    def no_cpu(**backend):
        raise RuntimeError("Unknown backend cpu")

    features_module._host.cache_clear()
    monkeypatch.setattr(features_module.jax, "local_devices", no_cpu)
    assert_array_equal(recording_features(path, CONFIG), expected)
    features_module._host.cache_clear()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("subtype", "value"), [("FLOAT", 3e38), ("DOUBLE", 1e200)])
def test_samples_too_large_for_float32_are_named(tmp_path, channels, subtype, value):
    samples = np.tile(noise(16_000)[:, None].astype(np.float64), channels)
    samples[8000] = value
    soundfile.write(tmp_path / "loud.wav", samples, 16_000, subtype=subtype)
    with refused(r"loud\.wav: expected (samples within ±1|finite samples)"):
        recording_features(tmp_path / "loud.wav", CONFIG)


def test_a_mean_needs_finite_features(tmp_path):
    run = Run(tmp_path, RunConfig(features=CONFIG))
    features = np.zeros((98, 32), np.float32)
    for wrong in (np.nan, np.inf):
        features[50, 3] = wrong
        with refused("features: expected finite log-mel energies"):
            run.norm([features])
        assert not (tmp_path / "norm.npz").exists()
    features[50, 3] = 3e38
    assert np.isfinite(run.norm([features])).all()


def test_many_threads_at_once_read_entries_as_numpy_does(entry):
    with ThreadPoolExecutor(8) as pool:
        for array in pool.map(read_entry, [entry] * 2000):
            assert isinstance(array, np.memmap) and array.filename == entry
    assert_array_equal(array, np.load(entry))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: np.save(path, np.zeros((98, 32))),
        lambda path: path.write_bytes(path.read_bytes().replace(b"(98, 32), }  ", b"(9800, 32), }")),
    ],
)
def test_an_entry_damaged_after_the_check_is_named(entry, spoil):
    before = entry.read_bytes()
    spoil(entry)
    assert not entry.exists() or entry.read_bytes() != before
    with refused(rf"{entry}: expected a cached array"):
        CachedFeatures([entry])[0]


def test_a_recording_that_fails_fails_all_of_its_parts(record, tmp_path, computed):
    whole = record("a.wav", noise(100))
    parts = [replace(whole, name=f"a.wav#t={part}", file="a.wav") for part in ("0,1", "1,2")]
    _, bad = cached_features([*parts, record("b.wav", noise(16_000))], CONFIG, tmp_path / "cache")
    assert list(bad) == ["a.wav#t=0,1", "a.wav#t=1,2"] and len(set(bad.values())) == 1
    assert len(computed) == 2
