"""Each way to run a detector beside oracles, what is refused, and the tables of runtimes by hand."""

import importlib.util
import itertools

import numpy as np
import pytest

from benchmarks import runtimes
from benchmarks.common import RESULTS, filled
from benchmarks.runtimes import Times, byte_row, detectors, time_rows, timed, untrained, written
from benchmarks.speed import detector as single
from benchmarks.speed.detector import ORT, C, Weights, by_float, check, features
from qkd_jax.audio import log_mel_numpy
from qkd_jax.config import FeatureConfig, LSTMConfig, QuantConfig
from qkd_jax.detector import file, reference
from qkd_jax.errors import InputError
from qkd_jax.runtimes.onnx_graph import clip_model, step_model
from tests.detectors import FRONT, PLAIN, random_detector

HIDDEN_SIZE = 6
CLIP = features(9)
TINY = LSTMConfig(hidden_size=6, pooling="mean", quant=QuantConfig.integer(4))


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


def test_a_quantized_peer_is_close_but_quantized():
    logits, expected = peer(single.ORT_INT8).clip(CLIP), oracle(weights(), CLIP)
    assert 1e-4 < abs(logits - expected).max() / abs(expected).max() < 0.05


def test_a_way_without_state_is_refused():
    way = peer(ORT)
    forgetful = way._replace(step=lambda state, frame: way.step(way.start(), frame))
    with pytest.raises(InputError, match="by frames: expected the peer within"):
        check(ORT, forgetful, CLIP, by_float(weights(), CLIP), single.SAME)


def test_the_front_end_is_cut_off():
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    detector = random_detector(PLAIN, mels=single.MELS)
    for make in (clip_model, step_model):
        whole, cut = make(detector), make(detector)
        inputs = [each.name for each in single.session(single.without_front_end(cut)).get_inputs()]
        assert inputs == ["log_mel", *(each.name for each in whole.graph.input[1:])]
        assert "STFT" in {node.op_type for node in whole.graph.node}
        assert "STFT" not in {node.op_type for node in cut.graph.node}


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


def test_rows_of_times_by_hand():
    times = {
        "C": Times([0.003, 0.001, 0.002, 0.005, 0.004], [0.006, 0.006, 0.009, 0.007, 0.001], 0.00012),
        "NumPy": Times([0.2], [0.25], 0.0),
    }
    dash = ["–"] * 5
    assert time_rows("tiny", times) == [
        ["tiny", "NumPy", "200.0", "200.0 to 200.0", "250.0", "50", "0"],
        ["tiny", "JAX", *dash],
        ["tiny", "ONNX Runtime", *dash],
        ["tiny", "LiteRT", *dash],
        ["tiny", "C", "3.0", "2.0 to 4.0", "6.0", "3,333", "0.0001"],
    ]


def test_runtimes_take_turns_and_other_logits_are_refused():
    called = []

    def runtime(name, logit):
        def clip_logits(waveform):
            called.append(name)
            return logit * waveform

        return clip_logits

    given = {"C": runtime("C", 2.01), "NumPy": runtime("NumPy", 2.0), "LiteRT": runtime("LiteRT", 5.0)}
    waveform = np.array([-1.0, 0.5], np.float32)
    times = timed(given, waveform, 2)
    assert called[-6:] == ["C", "NumPy", "LiteRT"] * 2
    assert {(len(each.cpu), len(each.wall)) for each in times.values()} == {(2, 2)}
    differences = [times[name].difference for name in ("C", "NumPy", "LiteRT")]
    np.testing.assert_allclose(differences, [0.01, 0, 3], atol=1e-6)
    for logit in (2.1, np.nan):
        with pytest.raises(InputError, match="C: expected NumPy's logits, found a difference of"):
            timed(given | {"C": runtime("C", logit)}, waveform, 1)


def test_bytes_are_those_of_the_files(tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="needs onnx")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: name != "litert_converter" and find_spec(name, *rest)
    )
    detector = random_detector(FRONT)
    files = written(detector, tmp_path)
    row = byte_row("tiny", detector, files)
    whole, clip, front, graph, weights, step = (int(cell.replace(",", "")) for cell in row[1:7])
    names = ("detector.safetensors", "detector.onnx", "detector-step.onnx")
    assert [whole, clip, step] == [(tmp_path / name).stat().st_size for name in names]
    assert min(front, graph, weights) > 0 and front + graph + weights == clip
    assert row[0] == "tiny" and row[7] == "–" and len(row) == 10 and "LiteRT" not in files
    assert int(row[8].replace(",", "")) > int(row[9].replace(",", "")) > 100


def test_an_untrained_detector_neither_stays_at_zero_nor_saturates(monkeypatch):
    monkeypatch.setattr(runtimes, "SECONDS", 1)
    detector = untrained(TINY, FeatureConfig(n_mels=8))
    file.check(detector)
    codes = reference.input_codes(detector, log_mel_numpy.log_mel(detector.features, runtimes.noise(16_000)))
    assert abs(codes.mean()) < 20 < codes.std() < 90
    assert detector.clip_seconds == 1
    assert abs(reference.clip_logits(detector, codes)).min() > 0.02


def test_files_of_one_name_are_refused(tmp_path):
    paths = [tmp_path / run / "student.safetensors" for run in "ab"]
    for path in paths:
        path.parent.mkdir()
        file.save(random_detector(FRONT), path)
    with pytest.raises(InputError, match="different names"):
        detectors(paths)
    assert list(detectors(paths[:1])) == ["student"]


def test_the_page_has_the_parts_that_are_measured():
    page = (RESULTS / "runtimes.md").read_text()
    assert filled(page, dict.fromkeys(("machine", "time", "bytes"), "x")).count("\nx\n") == 3
