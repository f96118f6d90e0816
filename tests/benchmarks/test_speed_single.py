"""Each way to run a detector beside oracles, and what is refused."""

import itertools

import numpy as np
import pytest

from benchmarks.speed import single
from benchmarks.speed.single import ORT, C, Weights, by_float, check, features
from qkd_jax.config import LSTMConfig, QuantConfig
from qkd_jax.errors import InputError
from qkd_jax.runtimes import onnx
from tests.detectors import PLAIN, random_detector

UNITS = 6
CLIP = features(9)


def weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((UNITS + single.MELS, 4 * UNITS), (4 * UNITS,), (UNITS, 3), (3,))
    return Weights(*(rng.normal(0, 0.5, shape).astype(np.float32) for shape in shapes))


def oracle(given, x):
    """The float LSTM, gate by gate and step by step."""
    w, b, out, bias = (each.astype(np.float64) for each in given)
    h, c = np.zeros((2, UNITS))
    for x_t in x:
        f, i, candidate, o = np.split(np.concatenate([h, x_t]) @ w + b, 4)
        f, i, o = (1 / (1 + np.exp(-z)) for z in (f, i, o))
        c = f * c + i * np.tanh(candidate)
        h = o * np.tanh(c)
    return h @ out + bias


def peer(name):
    if name in (single.TORCH, single.TORCH_INT8):
        pytest.importorskip("torch", reason="needs torch")
        return single.in_torch(weights(), int8=name == single.TORCH_INT8)
    if name == single.LITERT_FLOAT:
        pytest.importorskip("litert_converter", reason="pip install --no-deps litert-converter")
        return single.in_float_litert(weights())
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    model = single.onnx_model(weights())
    return single.in_onnx_lstm(single.quantized(model) if name == single.ORT_INT8 else model, UNITS)


def test_ours_in_float_is_the_equations():
    np.testing.assert_allclose(by_float(weights(), CLIP), oracle(weights(), CLIP), rtol=1e-5)


@pytest.mark.parametrize("name", [ORT, single.TORCH, single.LITERT_FLOAT])
def test_a_float_peer_is_the_equations(name):
    way = peer(name)
    np.testing.assert_allclose(way.clip(CLIP), oracle(weights(), CLIP), rtol=1e-4)
    check(name, way, CLIP, by_float(weights(), CLIP), single.WITHIN[name])


@pytest.mark.parametrize("name", [single.ORT_INT8, single.TORCH_INT8])
def test_a_quantized_peer_is_near_but_quantized(name):
    found, expected = peer(name).clip(CLIP), oracle(weights(), CLIP)
    assert 1e-4 < abs(found - expected).max() / abs(expected).max() < 0.05


@pytest.mark.parametrize(("name", "gates"), [(ORT, "ONNX_GATES"), (single.TORCH, "TORCH_GATES")])
def test_no_other_order_of_gates_agrees(name, gates, monkeypatch):
    peer(name)  # or skip
    expected, right = by_float(weights(), CLIP), getattr(single, gates)
    for wrong in set(itertools.permutations(range(4))) - {right}:
        monkeypatch.setattr(single, gates, wrong)
        with pytest.raises(InputError, match=f"{name}: expected the peer within 0.0001 of ours"):
            check(name, peer(name), CLIP, expected, single.WITHIN[name])


def test_a_way_that_forgets_between_frames_is_refused():
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    way = peer(ORT)
    forgetful = way._replace(step=lambda state, frame: way.step(way.start(), frame))
    with pytest.raises(InputError, match="by frames: expected the peer within"):
        check(ORT, forgetful, CLIP, by_float(weights(), CLIP), single.SAME)


def test_the_front_end_is_cut_off():
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    detector = random_detector(PLAIN, mels=single.MELS)
    for make in (onnx.clip_model, onnx.step_model):
        whole, cut = make(detector), make(detector)
        inputs = [each.name for each in single.session(single.without_front_end(cut)).get_inputs()]
        assert inputs == ["log_mel", *(each.name for each in whole.graph.input[1:])]
        assert "STFT" in {node.op_type for node in whole.graph.node}
        assert "STFT" not in {node.op_type for node in cut.graph.node}


@pytest.mark.slow
def test_rows():
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    *found, eight, four = single.rows(2, frames=9, units=UNITS, repeat=3)
    assert (eight.what, four.what, eight.peer, len(four.seconds)) == (
        "9 frames, 8 bits",
        "9 frames, 4 bits",
        None,
        2,
    )
    whats = [f"{what}, {bits} bits" for what in ("9 frames", "a frame") for bits in (8, 4)]
    assert list(dict.fromkeys(row.what for row in found)) == whats
    for row in found:
        assert len(row.seconds) == len(row.peer_seconds) == 2 and row.off < 0.2
    goals = {(row.what, row.ours): (row.at_least, row.at_most) for row in found if row.peer == ORT}
    assert goals["9 frames, 4 bits", C] == (1 / 0.3, None) and goals["a frame, 8 bits", C] == (None, 6e-6)
    assert goals["9 frames, 8 bits", single.NUMPY] == (None, None)
    assert "a frame, 8 bits" not in {row.what for row in found if row.ours == single.JAX}


@pytest.mark.parametrize("bits", [8, 4])
def test_products_are_all_taken(bits):
    x = single.features(20)
    detector, _ = single.untrained(LSTMConfig(hidden_size=40, quant=QuantConfig.integer(bits)), x)
    # Of inputs that are 0, in each frame two of each 64 rows or less: what is taken off, the frame's number.
    assert single.products(detector, 5)() == -(0 + 1 + 2 + 3 + 4) * 2 * 3
