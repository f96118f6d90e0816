"""Views: what is drawn, how they sound, and the files that hold them."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from qkd_jax.config import FeatureConfig
from qkd_jax.data.cache import read_entry
from qkd_jax.data.features import cached_features
from qkd_jax.data.views import Changes, View, draw, make_views, samples_of_view
from qkd_jax.errors import InputError
from tests.recordings import clip, noise, record

RATE = 16_000
PLAIN = Changes(speed=0.0, filters=0.0, gain=0.0)
CLIPS = [clip(f"{index}.wav", group=f"g{index // 2}") for index in range(12)]


def tone(frequency, seconds=1.0, level=0.1):
    return level * np.sin(2 * np.pi * frequency / RATE * np.arange(round(seconds * RATE))).astype(np.float32)


def spectrum(samples):
    return np.abs(np.fft.rfft(samples)) / len(samples)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31 - 1), st.integers(1, 4), st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_each_clip_has_its_views_mixed_with_others_of_its_fold(seed, count, folds):
    views = draw(CLIPS, folds, count, seed)
    assert [view.sources[0] for view in views] == CLIPS * count
    assert [view.number for view in views] == np.repeat(np.arange(1, count + 1), 12).tolist()
    assert len({view.seed for view in views}) == len(views)
    for view in views:
        assert len({folds[CLIPS.index(each)] for each in view.sources}) == 1
        assert len(set(view.sources)) == len(view.sources) <= 2
    assert draw(CLIPS, folds, count, seed) == views != draw(CLIPS, folds, count, seed + 1)


def test_recordings_without_labels_are_added_as_often_as_those_of_the_fold():
    own = [clip(f"{index}.wav") for index in range(150)]
    further = [clip(f"further{index}.wav") for index in range(50)]
    views = draw(own, [index % 3 for index in range(150)], 4, 0, further)
    added = [view.sources[1] for view in views if len(view.sources) == 2]
    assert {view.sources[0] for view in views} == set(own) and len(views) == 600
    assert set(added) > set(further)
    assert np.mean([each in further for each in added]) == pytest.approx(50 / 99, abs=0.08)


def test_views_of_another_channel_are_read_by_the_only_one_that_they_have(tmp_path):
    left, right = tone(500, 0.5), tone(2000, 0.5)
    own = record(tmp_path, "x.wav", np.stack([left, right], axis=1))
    config = FeatureConfig()
    [made] = make_views(draw([own], [0], 1, 0), tmp_path, seconds=10.0, rate=RATE, channel=2)
    entries, bad = cached_features([own, made], config, tmp_path, channel=2)
    assert not bad
    bands = [read_entry(entry).mean(axis=0).argmax() for entry in entries]
    assert abs(int(bands[0]) - int(bands[1])) <= 4 and bands[1] > 20


def test_one_recording_is_mixed_with_those_without_labels():
    views = draw(CLIPS[:1], [0], 100, 0, CLIPS[1:])
    assert len({view.sources[1] for view in views if len(view.sources) == 2}) == 11


def test_the_share_of_mixtures_is_as_set_for_folds_of_any_size_but_one():
    for size, share in ((500, 0.3), (2, 0.3), (1, 0.0)):
        clips = [clip(str(index)) for index in range(500)]
        views = draw(clips, [index // size for index in range(500)], 2, 0, mixtures=0.3)
        assert np.mean([len(view.sources) == 2 for view in views]) == pytest.approx(share, abs=0.04)


def test_another_recording_leaves_the_changes_of_the_others_as_they_are():
    before, after = (draw(clips, [0] * len(clips), 1, 0) for clips in (CLIPS[1:], CLIPS))
    assert [view.seed for view in before] == [view.seed for view in after[1:]]


def test_without_changes_a_view_is_its_recording_rolled(tmp_path):
    samples = noise(4000)
    own = record(tmp_path, "x.wav", samples)
    view = samples_of_view(View((own,), 1, (0, 0)), PLAIN, seconds=10.0, rate=RATE)
    start = int(np.abs(view - samples[0]).argmin())
    assert start
    assert_allclose(np.roll(view, -start), samples, atol=1e-5)


def test_a_mixture_is_the_sum_of_both_and_the_shorter_is_repeated(tmp_path):
    first, second = record(tmp_path, "a.wav", tone(500, 2.0)), record(tmp_path, "b.wav", tone(2000, 0.5))
    view = samples_of_view(View((first, second), 1, (3, 0)), PLAIN, seconds=10.0, rate=RATE)
    assert len(view) == 2 * RATE
    assert_allclose(spectrum(view)[[1000, 4000]], [0.05, 0.05], rtol=1e-3)


def test_a_loud_mixture_is_scaled_to_full_scale(tmp_path):
    both = tuple(record(tmp_path, name, np.full(1600, 0.8, np.float32)) for name in ("a.wav", "b.wav"))
    view = samples_of_view(View(both, 1, (0, 0)), PLAIN, seconds=10.0, rate=RATE)
    assert_allclose(view, 1, atol=1e-5)


def test_speeds_gains_and_filters_are_within_their_bounds(tmp_path):
    config = Changes(speed=0.2, gain=3.0, filters=4.0)
    own, found = record(tmp_path, "x.wav", tone(1000, 2.0)), []
    for seed in range(60):
        view = samples_of_view(View((own,), 1, (seed, 0)), config, seconds=1.0, rate=RATE)
        assert len(view) == RATE
        # Within the view: where a shift joins its ends, a tone has a click.
        peak = np.abs(np.fft.rfft(view * np.hanning(RATE))).argmax()
        found.append((peak / 1000, 10 * np.log10(np.mean(np.square(view)) / (0.1**2 / 2))))
    speed, decibels = np.transpose(found)
    assert 1 / 1.21 < speed.min() < 0.87 and 1.15 < speed.max() < 1.21
    assert 4 < np.abs(decibels).max() < 7.2


def test_views_are_made_once_and_are_clips_without_labels(tmp_path):
    clips = [record(tmp_path, f"{index}.wav", noise(8000, index), group="g") for index in range(4)]
    views = draw(clips, [0, 0, 1, 1], 2, 5)

    def made(views=views, **changed):
        settings = {"seconds": 0.4, "rate": RATE} | changed
        return make_views(views, tmp_path / "cache", **settings)

    first = made()
    assert [each.name for each in first] == [f"view:{n}:{i}.wav" for n in (1, 2) for i in range(4)]
    assert {(each.group, each.labelled, each.split, each.labels) for each in first} == {
        ("g", False, "train", frozenset())
    }
    for view, each in zip(views, first):
        samples, rate = soundfile.read(each.path)
        assert rate == RATE
        expected = samples_of_view(view, seconds=0.4, rate=RATE)
        assert_allclose(samples, expected, atol=1.1 / 2**15)
    times = [each.path.stat().st_mtime_ns for each in first]
    assert made() == first and [each.path.stat().st_mtime_ns for each in first] == times
    # Fewer views are the same ones; other settings or recordings give others.
    assert made(views[:4]) == first[:4]
    for other in (made(changes=Changes(gain=1.0)), made(seconds=0.3), made(rate=8000)):
        assert not {each.path for each in other} & {each.path for each in first}
    os.utime(clips[0].path, ns=(0, 0))
    same = [a.path == b.path for a, b in zip(first, made())]
    assert same == [clips[0] not in view.sources for view in views]


def test_a_view_of_a_part_holds_nothing_else_of_the_recording(tmp_path):
    samples = np.concatenate([noise(8000), tone(1000, 0.5), noise(8000, 1)])
    part = replace(record(tmp_path, "x.wav", samples), part=(0.5, 1.0))
    view = samples_of_view(View((part,), 1, (1, 0)), PLAIN, seconds=10.0, rate=RATE)
    assert_allclose(np.sort(view), np.sort(samples[8000:16000]), atol=1e-5)


def test_the_level_changes_linearly_between_corners_in_octaves(tmp_path):
    """An impulse has a flat spectrum; of six corners from 100 to 8000 Hz, each is 1.264 octaves up."""
    samples = np.zeros(RATE, np.float32)
    samples[8000] = 0.01
    own = record(tmp_path, "x.wav", samples)
    view = samples_of_view(View((own,), 1, (0, 0)), Changes(speed=0.0, gain=0.0), seconds=1.0, rate=RATE)
    decibels = 20 * np.log10(np.abs(np.fft.rfft(view)) / 0.01)
    corners = 100 * 80 ** (np.arange(6) / 5)
    middle = np.sqrt(corners[1:] * corners[:-1])
    at_corners, between = (np.interp(each, np.arange(RATE // 2 + 1), decibels) for each in (corners, middle))
    assert_allclose(between, (at_corners[1:] + at_corners[:-1]) / 2, atol=0.05)
    assert np.abs(at_corners).max() < 6.01 and np.ptp(at_corners) > 2
    assert_allclose(decibels[:100], decibels[100], atol=0.02)


def test_a_torn_file_is_made_again(tmp_path):
    views = draw([record(tmp_path, "x.wav", noise(8000))], [0], 1, 0, mixtures=0.0)
    (made,) = make_views(views, tmp_path / "cache", seconds=1.0, rate=RATE)
    content = made.path.read_bytes()
    made.path.write_bytes(b"")
    make_views(views, tmp_path / "cache", seconds=1.0, rate=RATE)
    assert made.path.read_bytes() == content


def test_a_read_only_cache_is_read_and_not_written(tmp_path, monkeypatch):
    clips = [record(tmp_path, f"{index}.wav", noise(8000, index)) for index in range(2)]
    views, cache = draw(clips, [0, 1], 1, 0, mixtures=0.0), tmp_path / "cache"
    (kept,) = make_views(views[:1], cache, seconds=1.0, rate=RATE)
    monkeypatch.setattr(os, "access", lambda *_: False)
    there, other = make_views(views, cache, seconds=1.0, rate=RATE)
    assert there == kept and not other.path.is_relative_to(cache) and other.path.is_file()


def test_a_disk_without_space_for_views_is_named_before_any_is_made(tmp_path):
    views = draw([record(tmp_path, "x.wav", noise(8000))], [0], 1, 0, mixtures=0.0)
    with pytest.raises(InputError, match=r"cache: expected 1000000\.0 GB free for views.*--augment\.views 0"):
        make_views(views, tmp_path / "cache", seconds=1.0, rate=RATE, each=1e15)
    assert not (tmp_path / "cache").exists()


def test_what_prevents_writing_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    views = draw([record(tmp_path, "x.wav", noise(8000))], [0], 1, 0, mixtures=0.0)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match=r"flac: could not be written: No space left"):
        make_views(views, tmp_path / "cache", seconds=1.0, rate=RATE)


def test_a_recording_that_has_gone_is_named(tmp_path):
    views = [View((clip("gone.wav", root=tmp_path),), 1, (0, 0))]
    with pytest.raises(InputError, match=r"gone\.wav: expected a recording"):
        make_views(views, tmp_path / "cache", seconds=1.0, rate=RATE)
    assert not list((tmp_path / "cache").rglob("*.flac"))


def test_equal_seeds_give_equal_samples(tmp_path):
    clips = tuple(record(tmp_path, f"{index}.wav", noise(8000, index)) for index in range(2))
    first, second = (samples_of_view(View(clips, 1, (1, 2)), seconds=0.3, rate=RATE) for _ in range(2))
    assert_array_equal(first, second)
