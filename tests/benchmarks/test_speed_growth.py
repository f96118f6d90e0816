"""Slopes of known powers, memory of a known size, and every kind of point at tiny sizes."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

from benchmarks.speed import growth, start
from benchmarks.speed.growth import Point, grown, slope
from qkd_jax.detector import events
from qkd_jax.detector import file as artefact
from qkd_jax.errors import InputError
from tests.detectors import FRONT, random_detector

MB = 10**6


@pytest.mark.parametrize("power", [0, 0.5, 1, 2.3])
def test_slope_of_a_power(power):
    sizes = [3, 40, 700]
    assert slope(sizes, [0.2 * size**power for size in sizes]) == pytest.approx(power)


@pytest.mark.parametrize(("power", "met"), [(1.0, True), (1.09, True), (1.11, False), (2.0, False)])
def test_the_goal_is_of_the_upper_half(power, met):
    sizes = [1, 10, 100, 1000, 10_000]
    seconds = [9.0, 9.0, *(1e-3 * size**power for size in sizes[2:])]
    points = (Point([each, each, 99.0], (7 + place) * MB) for place, each in enumerate(seconds))
    *others, last = grown([f"{size} m" for size in sizes], sizes, points, ours="walking", unit="metre")
    assert last.met is met and {row.met for row in others} == {None}
    assert last.note.endswith(f"; from 100 m on: slope {power:.2f}, memory × 1.22")
    assert others[1].note == "8 MB; 900 ms a metre" and others[1].what == "10 m"


def test_peak_is_of_the_process_alone():
    own = bytearray(300 * MB)
    own[::4096] = bytes(len(own[::4096]))  # in memory, not only promised
    code = (
        "from benchmarks.speed.growth import peak; a = peak(); b = bytearray(200_000_000); print(a, peak())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=growth.ROOT, capture_output=True, text=True, check=True
    )
    before, after = map(int, told.stdout.split())
    assert before < 300 * MB and 190 * MB < after - before < 210 * MB


def test_a_point_of_its_own_process(tmp_path):
    (point,) = growth.data_sets(tmp_path, [70])
    assert len(point.seconds) == 1 and 20 * MB < point.peak < 2000 * MB
    with pytest.raises(InputError, match="drawn nowhere 7: ended with status 1"):
        growth.measured("drawn", "nowhere", 7)


def test_data_sets_are_parts_of_the_largest(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "measured", lambda *asked: asked)
    assert list(growth.data_sets(tmp_path, [3, 7])) == [("drawn", tmp_path, 3), ("drawn", tmp_path, 7)]
    data = growth.opened(tmp_path, 3)
    assert data.names == ["0.wav", "1.wav", "2.wav"]
    np.testing.assert_array_equal(data.targets, [[0], [1], [0]])
    assert [each.shape for each in data.features] == [(8, 8)] * 3


def test_a_recording_is_heard_to_its_end(tmp_path, monkeypatch):
    detector, heard = random_detector(FRONT), []
    artefact.save(detector, tmp_path / "model.safetensors")
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), 16_000)

    def detect(found, blocks):
        assert found.events == detector.events
        heard.extend(map(len, blocks))
        yield from ()

    monkeypatch.setattr(events, "detect", detect)
    assert len(growth.heard(str(tmp_path / "model.safetensors"), str(tmp_path / "noise.wav"))) == 1
    assert sum(heard) == 40_000


@pytest.mark.slow
def test_a_train_step_a_round():
    assert len(growth.trained("2", "3", "4", "5")) == 5


def test_rows(monkeypatch):
    asked = []

    def measured(task, *sizes):
        asked.append((task, *sizes))
        return Point([float(len(asked))], MB)

    monkeypatch.setattr(growth, "measured", measured)
    monkeypatch.setattr(start, "untrained", lambda *_: (random_detector(FRONT), None))
    found = list(growth.rows(5, seconds=[1, 2], clips=[3, 4], batches=[1, 2], units=[2, 3], steps=6))
    assert [row.what for row in found] == [
        *("1 s of sound", "2 s of sound", "3 clips", "4 clips"),
        *("batch 1, 256 units, 6 steps", "batch 2, 256 units, 6 steps"),
        *("batch 16, 2 units, 6 steps", "batch 16, 3 units, 6 steps"),
    ]
    assert [row.seconds for row in found] == [[place + 1.0] for place in range(8)]
    assert asked[4:] == [("trained", *sizes, 6, 5) for sizes in [(1, 256), (2, 256), (16, 2), (16, 3)]]
    # In proportion to weights, not to units: 4 · 3 · (3 + 64) of them.
    assert found[-1].at_most == pytest.approx(7 * (804 / 528) ** 1.1)
