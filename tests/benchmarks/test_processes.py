"""Start-up, imports and growth: slopes of known powers, memory of a known size, tasks at tiny sizes."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from benchmarks.common import ROOT
from benchmarks.speed import processes
from benchmarks.speed.processes import Point, grown, slope
from qkd_jax.config import DenseNetConfig, LSTMConfig, QuantConfig
from qkd_jax.detector import events, file
from qkd_jax.distill.objectives import distillation_loss, weighted_bce
from qkd_jax.errors import InputError
from qkd_jax.models.build import build_model
from tests.detectors import FRONT, PLAIN, random_detector

TINY = LSTMConfig(hidden_size=4, quant=QuantConfig.paper(8))
MB = 10**6


def test_only_the_first_line_is_awaited():
    endless = "print('one', flush=True); print('two', flush=True); import time; time.sleep(1e6)"
    assert processes.first_line([sys.executable, "-c", endless]) == "one\n"
    with pytest.raises(InputError, match="expected a line"):
        processes.first_line([sys.executable, "-c", ""])


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
    with pytest.raises(InputError, match="the script: expected the peer within"):
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


@pytest.mark.slow
@pytest.mark.parametrize("network", [TINY, DenseNetConfig(blocks=(1,), growth=2, stem=2)])
def test_the_step_is_that_of_the_equations(network):
    step, new_state, examples = processes.train_step(network, (3, 20, 8))
    state, batch = new_state(), jax.tree.map(jnp.asarray, examples)
    logits, _ = build_model(network, 3).apply(
        state.model, batch["features"], train=True, mutable=["batch_stats"]
    )
    if network is TINY:
        expected = distillation_loss(logits, batch["labels"], batch["labels"], alpha=0.5, temperature=2.0)
    else:
        expected = weighted_bce(logits, batch["labels"])
    before = jax.tree.map(np.array, state.params)
    after, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    moved = jax.tree.map(lambda old, new: bool(abs(old - new).max() > 0), before, after.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
def test_compilations(monkeypatch):
    student = "the paper's student, 8 bits"
    monkeypatch.setattr(processes, "COMPILED", {student: processes.COMPILED[student]})
    for name in ("starts", "imports"):
        monkeypatch.setattr(processes, name, lambda rounds: iter(()))
    (row,) = processes.start_rows(1, (2, 10, 8))
    assert row.what == f"compiling a train step of {student}, 2 × 10 × 8" and row.at_most == 15
    assert len(row.seconds) == 1 and row.seconds[0] >= float(row.note.split()[0]) - 0.05


@pytest.mark.parametrize("power", [0, 0.5, 1, 2.3])
def test_slope_of_a_power(power):
    sizes = [3, 40, 700]
    assert slope(sizes, [0.2 * size**power for size in sizes]) == pytest.approx(power)


@pytest.mark.parametrize(("power", "met"), [(1.0, True), (1.09, True), (1.11, False), (2.0, False)])
def test_the_goal_applies_to_the_upper_half(power, met):
    sizes = [1, 10, 100, 1000, 10_000]
    seconds = [9.0, 9.0, *(1e-3 * size**power for size in sizes[2:])]
    points = (Point([each, each, 99.0], (7 + place) * MB) for place, each in enumerate(seconds))
    *others, last = grown([f"{size} m" for size in sizes], sizes, points, ours="walking", unit="metre")
    assert last.met is met and {row.met for row in others} == {None}
    assert last.note.endswith(f"; from 100 m on: slope {power:.2f}, memory × 1.22")
    assert others[1].note == "8 MB; 9e+05 µs per metre" and others[1].what == "10 m"


def test_peak_is_of_the_process_alone():
    own = bytearray(300 * MB)
    own[::4096] = bytes(len(own[::4096]))  # in memory, not only promised
    code = (
        "from benchmarks.speed.processes import peak; a, b = peak(), bytearray(200_000_000); print(a, peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 300 * MB and 190 * MB < after - before < 210 * MB


def test_data_sets_are_parts_of_the_largest_and_a_point_has_its_own_process(tmp_path, monkeypatch):
    for folder in "ab":
        (tmp_path / folder).mkdir()
    (point,) = processes.data_sets(tmp_path / "a", [70])
    assert len(point.seconds) == 1 and 20 * MB < point.peak < 2000 * MB
    with pytest.raises(InputError, match="epoch nowhere 7: ended with status 1"):
        processes.measured("epoch", "nowhere", 7)
    monkeypatch.setattr(processes, "measured", lambda *asked: asked)
    root = tmp_path / "b"
    assert list(processes.data_sets(root, [3, 7])) == [("epoch", root, 3), ("epoch", root, 7)]
    data = processes.opened(root, 3)
    assert data.names == ["0.wav", "1.wav", "2.wav"]
    np.testing.assert_array_equal(data.targets, [[0], [1], [0]])
    assert [each.shape for each in data.features] == [(8, 8)] * 3


def test_a_recording_is_processed_to_its_end(tmp_path, monkeypatch):
    detector, sizes = random_detector(FRONT), []
    file.save(detector, tmp_path / "model.safetensors")
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), 16_000)

    def detect(given, blocks):
        assert given.events == detector.events
        sizes.extend(map(len, blocks))
        yield from ()

    monkeypatch.setattr(events, "detect", detect)
    seconds = processes.detect_seconds(str(tmp_path / "model.safetensors"), str(tmp_path / "noise.wav"))
    assert len(seconds) == 1 and sum(sizes) == 40_000


@pytest.mark.slow
def test_a_train_step_per_round():
    assert len(processes.step_seconds("2", "3", "4", "5")) == 5


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
