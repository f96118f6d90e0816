"""Features of recordings: right, computed once, never read when half-written, and bad recordings named."""

import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from qkd_jax.audio.log_mel import log_mel
from qkd_jax.config import FeatureConfig, RunConfig
from qkd_jax.data import features as features_module
from qkd_jax.data.cache import read_entry
from qkd_jax.data.clips import Clip
from qkd_jax.data.features import CachedFeatures, cached_features, mean_and_std, recording_features
from qkd_jax.errors import InputError
from qkd_jax.run_folder.folder import Run

CONFIG = FeatureConfig(n_mels=32)


@pytest.fixture
def record(tmp_path):
    """Writes samples (float, so that nothing is rounded) and gives the clip."""

    def record(name, samples, rate=16_000):
        path = tmp_path / name
        soundfile.write(path, samples, rate, subtype="FLOAT")
        return Clip(name=name, root=tmp_path, labels=frozenset(), group=name)

    return record


@pytest.fixture
def computed(monkeypatch):
    """The paths of the recordings whose features are computed, as it happens."""
    paths = []
    compute = recording_features

    def noted(path, config):
        paths.append(path)
        return compute(path, config)

    monkeypatch.setattr(features_module, "recording_features", noted)
    return paths


def headed(path, header):
    """Put another header in front of an array."""
    content = path.read_bytes()
    rest = content[10 + int.from_bytes(content[8:10], "little") :]
    header = header.encode() + b"\n"
    path.write_bytes(content[:8] + len(header).to_bytes(2, "little") + header + rest)


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


@pytest.mark.parametrize("samples", [400, 7001, 15_999, 16_000, 21_337, 31 * 16_000 + 77, 64 * 16_000])
def test_features_are_those_of_the_samples_bit_for_bit(record, samples):
    # The longest are read in several blocks.
    waveform = noise(samples)
    features = recording_features(record("a.wav", waveform).path, CONFIG)
    np.testing.assert_array_equal(features, log_mel(jnp.asarray(waveform), CONFIG))


def test_recordings_of_another_rate_are_resampled(record):
    time = np.arange(8000) / 8000
    low = recording_features(record("low.wav", 0.5 * np.sin(2 * np.pi * 1000 * time), 8000).path, CONFIG)
    time = np.arange(16_000) / 16_000
    high = recording_features(record("high.wav", 0.5 * np.sin(2 * np.pi * 1000 * time)).path, CONFIG)
    band = high[50].argmax()
    np.testing.assert_allclose(low[10:-10, band], high[10:-10, band], atol=0.01)


def test_each_recording_is_computed_once(record, tmp_path, computed):
    clips = [record(f"{index}.wav", noise(16_000 + 500 * index, index)) for index in range(6)]
    entries, bad = cached_features(clips, CONFIG, tmp_path / "cache")
    assert sorted(computed) == sorted(clip.path for clip in clips) and bad == {}
    kept = CachedFeatures(entries)
    for clip, features in zip(clips, kept):
        np.testing.assert_array_equal(features, recording_features(clip.path, CONFIG))
    computed.clear()
    again, bad = cached_features(clips, CONFIG, tmp_path / "cache")
    assert list(again) == list(entries) and bad == {}
    more = [*clips, record("new.wav", noise(16_000, 9))]
    cached_features(more, CONFIG, tmp_path / "cache")
    assert computed == [more[-1].path]


def test_other_settings_and_changed_recordings_are_computed_anew(record, tmp_path, computed):
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
    np.testing.assert_array_equal(np.load(cached_features([twin], CONFIG, cache)[0][0]), before)
    assert len(computed) == 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:50]),
        lambda path: np.save(path, np.zeros((98, 7), np.float32)),
        lambda path: np.save(path, np.zeros((98, 32), np.float64)),
        lambda path: np.save(path, np.zeros((0, 32), np.float32)),
        lambda path: np.save(path, np.zeros((32, 98), np.float32).T),
        lambda path: path.write_bytes(path.read_bytes().replace(b"(98, ", b"(99, ")),
        lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),  # an archive of nothing
        lambda path: headed(path, "{'descr': '<f4', 'fortran_order': False, 'shape': (98, 2**63), }"),
        lambda path: headed(path, "{'descr': '<f4', 'fortran_order': False, 'shape': (10**30, 32), }"),
        lambda path: headed(path, "{'descr': '<f4', 'fortran_order': False, 'shape': (-98, 32), }"),
        lambda path: headed(path, "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 32), }"),
        lambda path: headed(path, "{'descr': '|O', 'fortran_order': False, 'shape': (98, 32), }"),
        lambda path: headed(path, "{'descr': '>f4', 'fortran_order': False, 'shape': (98, 32), }"),
        lambda path: headed(path, "[" * 9000),
        lambda path: headed(path, "{'descr': '"),
    ],
)
def test_an_entry_that_is_not_whole_is_computed_anew(record, tmp_path, spoil):
    clip = record("a.wav", noise(16_000))
    (entry,), _ = cached_features([clip], CONFIG, tmp_path / "cache")
    whole = entry.read_bytes()
    spoil(entry)
    assert entry.read_bytes() != whole
    again, bad = cached_features([clip], CONFIG, tmp_path / "cache")
    assert list(again) == [entry] and bad == {}
    assert entry.read_bytes() == whole


def test_an_interruption_keeps_what_is_done_and_leaves_nothing_half_done(record, tmp_path, monkeypatch):
    clips = [record(f"{index:02}.wav", noise(16_000, index)) for index in range(40)]
    compute, begun = recording_features, threading.Semaphore(10)

    def slow(path, config):
        if not begun.acquire(blocking=False):
            raise KeyboardInterrupt
        return compute(path, config)

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


def test_several_at_once_compute_the_same_entries(record, tmp_path):
    clips = [record(f"{index}.wav", noise(16_000, index)) for index in range(8)]
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(cached_features(clips, CONFIG, tmp_path / "cache")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(list(entries), bad) for entries, bad in results] == [(list(results[0][0]), {})] * 3
    for clip, entry in zip(clips, results[0][0]):
        features = np.load(entry)
        np.testing.assert_array_equal(features, recording_features(clip.path, CONFIG))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "not there"),
        (lambda path: path.mkdir(), "not there"),
        (lambda path: path.write_bytes(b""), "expected a recording that libsndfile reads"),
        (lambda path: path.write_text("not a recording"), "expected a recording that libsndfile reads"),
        (lambda path: soundfile.write(path, np.zeros(0), 16_000), "expected samples, found none"),
        (lambda path: soundfile.write(path, noise(1), 16_000), "silent: all 1 samples are"),
        (lambda path: soundfile.write(path, noise(399), 16_000), "expected at least 400 samples"),
        (lambda path: soundfile.write(path, np.zeros(16_000), 16_000), "silent: all 16000 samples are 0"),
        (
            lambda path: soundfile.write(path, np.append(noise(9000), np.nan), 16_000, "FLOAT"),
            "expected finite samples, found NaN or infinity",
        ),
    ],
)
def test_a_recording_that_cannot_be_used_is_named_and_the_others_are_kept(record, tmp_path, make, said):
    good, path = record("good.wav", noise(16_000)), tmp_path / "bad.wav"
    make(path)
    bad = Clip(name="bad.wav", root=tmp_path, labels=frozenset(), group="bad")
    entries, reasons = cached_features([bad, good], CONFIG, tmp_path / "cache")
    assert [entry.is_file() for entry in entries] == [False, True]
    assert list(reasons) == ["bad.wav"]
    assert reasons["bad.wav"].startswith(f"{path}: {said}")
    assert "\n" not in reasons["bad.wav"]


def test_a_long_recording_takes_little_more_memory_than_its_features(record):
    minutes = 20
    path = record("long.wav", noise(minutes * 60 * 16_000)).path
    tracemalloc.start()
    features = recording_features(path, CONFIG)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(features) == CONFIG.frames(minutes * 60 * 16_000)
    samples = 4 * minutes * 60 * 16_000
    assert peak < 2.5 * features.nbytes + 20e6 < samples


def test_features_of_any_number_of_clips_take_no_memory(tmp_path):
    entries = [tmp_path / f"{index}.npy" for index in range(50)]
    for entry in entries:
        np.save(entry, np.ones((2000, 32), np.float32))
    tracemalloc.start()
    features = CachedFeatures(entries)
    held = [item[1000:1010] for item in features]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(held) == len(features) == 50
    assert peak < 2000 * 32 * 4


def test_mean_and_std_are_those_of_all_frames():
    rng = np.random.default_rng(0)
    features = [rng.normal(-8, 3, (frames, 5)).astype(np.float32) for frames in (1, 40, 200)]
    mean, std = mean_and_std(features)
    frames = np.concatenate(features).astype(np.float64)
    np.testing.assert_allclose(mean, frames.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, frames.std(axis=0), rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_a_constant_band_stays_finite_when_normalized():
    features = np.random.default_rng(0).normal(0, 1, (50, 3)).astype(np.float32)
    features[:, 1] = np.log(1e-6)
    mean, std = mean_and_std([features])
    normalized = (features - mean) / std
    assert np.isfinite(normalized).all()
    assert np.abs(normalized[:, 1]).max() < 1


def test_features_do_without_a_cpu_backend(record, monkeypatch):
    path = record("a.wav", noise(16_000)).path
    expected = recording_features(path, CONFIG)

    def no_cpu(**backend):
        raise RuntimeError("Unknown backend cpu")

    features_module._host.cache_clear()
    monkeypatch.setattr(features_module.jax, "local_devices", no_cpu)
    np.testing.assert_array_equal(recording_features(path, CONFIG), expected)
    features_module._host.cache_clear()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("subtype", "value"), [("FLOAT", 3e38), ("DOUBLE", 1e200)])
def test_samples_beyond_all_measure_are_named(tmp_path, channels, subtype, value):
    samples = np.tile(noise(16_000)[:, None].astype(np.float64), channels)
    samples[8000] = value
    soundfile.write(tmp_path / "loud.wav", samples, 16_000, subtype=subtype)
    said = r"loud\.wav: expected (samples of a full scale of 1|finite samples)"
    with pytest.raises(InputError, match=said):
        recording_features(tmp_path / "loud.wav", CONFIG)


def test_a_name_that_the_system_refuses_is_a_bad_recording(record, tmp_path):
    good, name = record("good.wav", noise(16_000)), 300 * "x" + ".wav"
    bad = Clip(name=name, root=tmp_path, labels=frozenset(), group=name)
    entries, reasons = cached_features([bad, good], CONFIG, tmp_path / "cache")
    assert [entry.is_file() for entry in entries] == [False, True] and "File name too long" in reasons[name]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 3e38])
def test_features_of_which_there_is_no_mean_are_named(tmp_path, wrong):
    run = Run(tmp_path, RunConfig(features=CONFIG))
    features = np.zeros((98, 32), np.float32)
    features[50, 3] = wrong
    if wrong == 3e38:  # of which there is one
        assert np.isfinite(run.norm([features])).all()
        return
    with pytest.raises(InputError, match="features: expected finite log-mel energies"):
        run.norm([features])
    assert not (tmp_path / "norm.npz").exists()


def test_entries_are_read_as_numpy_does_by_many_threads_at_once(record, tmp_path):
    clip = record("a.wav", noise(16_000))
    (entry,), _ = cached_features([clip], CONFIG, tmp_path / "cache")
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(read_entry, [entry] * 2000):
            assert isinstance(found, np.memmap) and found.filename == entry
    np.testing.assert_array_equal(found, np.load(entry))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: np.save(path, np.zeros((98, 32))),
        lambda path: path.write_bytes(path.read_bytes().replace(b"(98, 32), }  ", b"(9800, 32), }")),
    ],
    ids=["gone", "empty", "cut", "type", "a lie"],
)
def test_an_entry_that_is_spoilt_meanwhile_is_named(record, tmp_path, spoil):
    clip = record("a.wav", noise(16_000))
    (entry,), _ = cached_features([clip], CONFIG, tmp_path / "cache")
    before = entry.read_bytes()
    spoil(entry)
    assert not entry.exists() or entry.read_bytes() != before
    with pytest.raises(InputError, match=rf"{entry}: expected what was computed of a recording"):
        CachedFeatures([entry])[0]
