"""Start-up, imports and growth: slopes of known powers, memory of a known size, tasks at tiny sizes."""

import pytest

from benchmarks.speed import processes
from benchmarks.speed.processes import Point, grown
from qkd_jax.config import LSTMConfig, QuantConfig
from qkd_jax.detector import file
from qkd_jax.errors import InputError
from tests.detectors import FRONT, PLAIN, random_detector

TINY = LSTMConfig(hidden_size=4, quant=QuantConfig.paper(8))
MB = 10**6


def test_detect_beside_a_script(monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")

    def write_detector(path, network):
        detector = random_detector(PLAIN, mels=64)
        file.save(detector, path)
        return detector

    monkeypatch.setattr(processes, "write_detector", write_detector)
    (row,) = processes.starts(1)
    assert row.peer == "a script with ONNX Runtime" and row.off <= processes.CLOSE
    assert (len(row.seconds), len(row.peer_seconds), row.at_most) == (1, 1, 1.0)
    monkeypatch.setattr(processes, "SCRIPT", processes.SCRIPT.replace("[0][0]", "[0][1]"))
    with pytest.raises(InputError, match="a script with ONNX Runtime: expected the peer within"):
        list(processes.starts(1))


def test_imports_by_hand(monkeypatch):
    lines = (*processes.IMPORTS, "import jax")
    times = dict(zip(lines, ([0.1, 0.1], [0.9, 1.1], [2.0, 2.0], [0.6, 0.8])))

    def in_turns(calls, rounds):
        assert list(calls) == list(times) and rounds == 2
        return times.copy()

    monkeypatch.setattr(processes, "in_turns", in_turns)
    rows = list(processes.imports(2))
    assert [(row.ours, row.met, row.note) for row in rows] == [
        ("import qkd_jax", True, "-0.60 s"),
        ("from qkd_jax import lstm_scan", False, "+0.30 s"),
        ("from qkd_jax import *", None, "+1.30 s"),
    ]
    assert rows[1].at_most == pytest.approx(0.7 + 0.2)


@pytest.mark.parametrize(("power", "met"), [(1.0, True), (1.09, True), (1.11, False), (2.0, False)])
def test_the_goal_applies_to_the_upper_half(power, met):
    sizes = [1, 10, 100, 1000, 10_000]
    seconds = [9.0, 9.0, *(1e-3 * size**power for size in sizes[2:])]
    points = (Point([each, each, 99.0], (7 + place) * MB) for place, each in enumerate(seconds))
    *others, last = grown([f"{size} m" for size in sizes], sizes, points, ours="walking", unit="metre")
    assert last.met is met and {row.met for row in others} == {None}
    assert last.note.endswith(f"; from 100 m on: slope {power:.2f}, memory × 1.22")
    assert others[1].note == "8 MB; 9e+05 µs per metre" and others[1].what == "10 m"


def test_rows_of_growth(monkeypatch):
    asked = []

    def measured(task, *sizes):
        asked.append((task, *sizes))
        return Point([float(len(asked))], MB)

    monkeypatch.setattr(processes, "measured", measured)
    monkeypatch.setattr(processes, "write_detector", lambda *_: random_detector(FRONT))
    rows = list(
        processes.growth_rows(5, seconds=[1, 2], clips=[3, 4], batches=[1, 2], hidden_sizes=[2, 3], steps=6)
    )
    assert [row.what for row in rows] == [
        *("1 s of sound", "2 s of sound", "3 clips", "4 clips"),
        *("batch 1, 256 units, 6 steps", "batch 2, 256 units, 6 steps"),
        *("batch 16, 2 units, 6 steps", "batch 16, 3 units, 6 steps"),
    ]
    assert [row.seconds for row in rows] == [[place + 1.0] for place in range(8)]
    assert asked[4:] == [("step", *sizes, 6, 5) for sizes in [(1, 256), (2, 256), (16, 2), (16, 3)]]
    # In proportion to weights, not to units: there are 4 · 3 · (3 + 64).
    assert rows[-1].at_most == pytest.approx(7 * (804 / 528) ** 1.1)
