"""Each way to run a detector beside oracles, what is refused, and the tables of runtimes by hand."""

import itertools

import numpy as np
import pytest

from benchmarks.speed import detector as single
from benchmarks.speed import runtimes
from benchmarks.speed.detector import ORT, C, Weights, by_float, check, features
from qkd_jax.errors import InputError
from tests.detectors import FRONT, random_detector

HIDDEN_SIZE = 6
CLIP = features(9)


def weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((HIDDEN_SIZE + single.MELS, 4 * HIDDEN_SIZE), (4 * HIDDEN_SIZE,), (HIDDEN_SIZE, 3), (3,))
    return Weights(*(rng.normal(0, 0.5, shape).astype(np.float32) for shape in shapes))


def oracle(given, x):
    """The float LSTM, gate by gate and step by step."""
    w, b, out, bias = (each.astype(np.float64) for each in given)
    h, c = np.zeros((2, HIDDEN_SIZE))
    for x_t in x:
        f, i, candidate, o = np.split(np.concatenate([h, x_t]) @ w + b, 4)
        f, i, o = (1 / (1 + np.exp(-z)) for z in (f, i, o))
        c = f * c + i * np.tanh(candidate)
        h = o * np.tanh(c)
    return h @ out + bias


def peer(name):
    if name == single.TORCH:
        pytest.importorskip("torch", reason="needs torch")
        return single.in_torch(weights())
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    model = single.onnx_lstm(weights())
    return single.in_onnx_lstm(single.quantized(model) if name == single.ORT_INT8 else model, HIDDEN_SIZE)


@pytest.mark.parametrize("name", [ORT, single.TORCH])
def test_a_float_peer_computes_the_equations_and_no_other_order_of_gates_does(name, monkeypatch):
    way, expected = peer(name), by_float(weights(), CLIP)
    np.testing.assert_allclose(expected, oracle(weights(), CLIP), rtol=1e-5)
    np.testing.assert_allclose(way.clip(CLIP), oracle(weights(), CLIP), rtol=1e-4)
    check(name, way, CLIP, expected, single.WITHIN[name])
    gates = "ONNX_GATES" if name == ORT else "TORCH_GATES"
    for wrong in set(itertools.permutations(range(4))) - {getattr(single, gates)}:
        monkeypatch.setattr(single, gates, wrong)
        with pytest.raises(InputError, match=f"{name}: expected the peer within 0.0001 of ours"):
            check(name, peer(name), CLIP, expected, single.WITHIN[name])


def test_a_way_without_state_is_refused():
    way = peer(ORT)
    forgetful = way._replace(step=lambda state, frame: way.step(way.start(), frame))
    with pytest.raises(InputError, match="by frames: expected the peer within"):
        check(ORT, forgetful, CLIP, by_float(weights(), CLIP), single.SAME)


@pytest.mark.slow
def test_rows_of_clips_and_frames():
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    rows = list(single.rows(2, frames=9, hidden_size=HIDDEN_SIZE, repeat=3))
    whats = [f"{what}, {bits} bits" for what in ("9 frames", "a frame") for bits in (8, 4)]
    assert list(dict.fromkeys(row.what for row in rows)) == whats
    assert all(len(row.seconds) == len(row.peer_seconds) == 2 and row.off < 0.2 for row in rows)
    goals = {(row.what, row.ours): (row.at_least, row.at_most) for row in rows if row.peer == ORT}
    assert goals["9 frames, 4 bits", C] == (1 / 0.3, None) and goals["a frame, 8 bits", C] == (None, 6e-6)
    assert goals["9 frames, 8 bits", single.NUMPY] == (None, None)
    assert "a frame, 8 bits" not in {row.what for row in rows if row.ours == single.JAX}


def test_rows_of_runtimes_and_other_logits_are_refused(monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    monkeypatch.setattr(runtimes, "detectors", lambda: {"tiny": random_detector(FRONT)})
    rows = {row.ours: row for row in runtimes.rows(1)}
    assert {"NumPy", "JAX", "ONNX Runtime", "C"} <= rows.keys() and rows["NumPy"].peer is None
    assert all(rows[name].off <= runtimes.CLOSE for name in ("JAX", "ONNX Runtime", "C"))
    assert rows["ONNX Runtime"].note.endswith(" bytes") and "RAM: " in rows["C"].note
    ways = runtimes.ways

    def wrong(detector, folder):
        right = ways(detector, folder)
        return right | {"C": (lambda waveform: right["NumPy"][0](waveform) * 1.1, "")}

    monkeypatch.setattr(runtimes, "ways", wrong)
    with pytest.raises(InputError, match="C: expected the peer within"):
        list(runtimes.rows(1))
