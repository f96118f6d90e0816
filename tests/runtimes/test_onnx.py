"""ONNX models against the reference: equal codes, and log-mel energies within a tolerance."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.audio.log_mel import log_mel
from qkd_jax.config import FeatureConfig, LSTMConfig, QuantConfig
from qkd_jax.detector import reference
from qkd_jax.detector.codes import LOGIT_EXPONENT
from qkd_jax.distill.waveform_model import open_model
from qkd_jax.errors import InputError
from qkd_jax.runtimes.onnx import load, save
from qkd_jax.runtimes.onnx_graph import clip_model, sizes, step_model
from qkd_jax.system import libraries
from tests import onnx_codes
from tests.detectors import FORMS, FRONT, PLAIN, random_codes, random_detector, with_bits
from tests.onnx_codes import giving, opened, reference_codes

EACH = pytest.mark.parametrize("form", FORMS)


def assert_same(detector, codes):
    """Assert that the clip form, and a stream of steps, compute the reference's codes."""
    onnx_codes.assert_same(detector, clip_model(detector), step_model(detector), codes)


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def samples_of(model):
    """Samples per window, and from one to the next."""
    metadata = {item.key: item.value for item in model.metadata_props}
    return int(metadata["window_samples"]), int(metadata["hop_samples"])


@pytest.mark.parametrize("weights", [8, 4, 3, 2])
@EACH
def test_codes_equal_the_references(form, weights):
    detector = random_detector(with_bits(FORMS[form], weights), seed=weights)
    assert_same(detector, random_codes(detector, 60))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([*FORMS]), *[st.integers(2, 8)] * 2, st.integers(6, 13), st.integers(0, 99))
def test_codes_equal_the_references_at_any_bits(form, weights, activations, cell, seed):
    network = with_bits(FORMS[form], weights, activations)
    detector = random_detector(network, seed=seed, mels=9, events=2)
    lstm = tuple(layer._replace(cell_exponent=cell) for layer in detector.lstm)
    detector = dataclasses.replace(detector, input_exponent=1, lstm=lstm)
    assert_same(detector, random_codes(detector, 30, seed=seed))


@EACH
@pytest.mark.parametrize("sign", [1, -1])
def test_codes_equal_the_references_at_the_ends_of_every_range(form, sign):
    """Gates, cells, h and convolutions saturate, with inputs at their limits."""
    detector = random_detector(with_bits(FORMS[form], 8), seed=5, mels=8)
    layers = []
    for layer in detector.lstm:
        gates = np.repeat([9, 9, sign * 9, 9], len(layer.w_h)).astype(np.int32) << LOGIT_EXPONENT
        multiplier_x = layer.multiplier_x * np.float32(9)
        layers.append(layer._replace(bias=gates, multiplier_x=multiplier_x, cell_exponent=13))
    detector = dataclasses.replace(detector, lstm=tuple(layers))
    half = 2**7
    codes = np.where(np.arange(80)[:, None] // 20 % 2, half - 1, -half) * np.ones((1, 8), int)
    cells = reference_codes(detector, codes)[2]
    h, c = cells[:, ::2], cells[:, 1::2]
    assert (c == (2**15 - 1 if sign > 0 else -(2**15))).any()
    assert (h == (half - 1 if sign > 0 else -half)).any()
    assert_same(detector, codes)


@pytest.mark.parametrize("largest", [7, 8])
def test_codes_equal_the_references_at_the_limit_of_4_bits(largest):
    detector = random_detector(with_bits(FRONT, 8))
    front = tuple(conv._replace(w=conv.w.clip(-largest, largest)) for conv in detector.front)
    lstm = tuple(layer._replace(w_h=layer.w_h.clip(-largest, largest)) for layer in detector.lstm)
    assert_same(dataclasses.replace(detector, front=front, lstm=lstm), random_codes(detector, 40))


def test_convolutions_are_exact_before_they_are_rescaled():
    """Hundreds cancel to about 1, whose multiple is just above a half; with float32 it could be below."""
    detector = random_detector(with_bits(FRONT, 2))
    first = detector.front[0]
    w = first.w * np.array([1, 0, 0], np.int8)[:, None, None]
    multiplier, bias = np.full_like(first.multiplier, 2559.5003), np.full_like(first.bias, 128)
    first = first._replace(w=w - w[:, ::-1], multiplier=multiplier, bias=bias)
    codes = 100 + np.random.default_rng(0).integers(2, size=(80, 32))
    assert_same(dataclasses.replace(detector, front=(first, *detector.front[1:])), codes)


def test_energies_of_a_single_frame_equal_those_of_the_clip_bit_for_bit():
    session = opened(giving(clip_model(random_detector(PLAIN, mels=64)), "log_mel"))
    waveform = noise(8000)
    expected = session.run(["log_mel"], {"waveform": waveform})[0]
    for frame, row in enumerate(expected):
        alone = session.run(["log_mel"], {"waveform": waveform[160 * frame :][:400]})[0]
        np.testing.assert_array_equal(alone[0], row)


def test_a_step_reads_its_receptive_field():
    samples = {form: samples_of(step_model(random_detector(FORMS[form]))) for form in FORMS}
    assert samples == {"plain": (400, 160), "deep": (400 + 2 * 160, 160), "front": (400 + 14 * 160, 4 * 160)}


SOUNDS = {
    "noise": noise(8000),
    "quiet": 1e-4 * noise(8000),
    "silence": np.zeros(8000, np.float32),
    "tone": np.sin(2 * np.pi * 0.137 * np.arange(8000)).astype(np.float32),
    "click": np.eye(1, 8000, 4321, dtype=np.float32)[0],
    "one frame": noise(400 + 159),
}


@pytest.mark.parametrize("sound", SOUNDS)
def test_log_mel_energies_equal_those_of_training(sound):
    detector, waveform = dataclasses.replace(random_detector(PLAIN, mels=64), input_exponent=6), SOUNDS[sound]
    session = opened(giving(clip_model(detector), "log_mel", "codes"))
    _, logits, energies, codes = session.run(None, {"waveform": waveform})
    expected = np.asarray(log_mel(jnp.asarray(waveform)))
    np.testing.assert_allclose(energies, expected, atol=1e-3)
    assert {"noise": 127, "silence": -128}.get(sound, codes[0, 0]) in codes  # clipped
    # Codes are those of these energies, and those of training except where rounding was close.
    np.testing.assert_array_equal(codes, reference.input_codes(detector, energies))
    apart = codes - reference.input_codes(detector, expected)
    assert abs(apart).max() <= 1 and np.count_nonzero(apart) <= 1e-3 * apart.size
    exact = reference.clip_logits(detector, codes.astype(np.int32))
    np.testing.assert_allclose(logits, exact, rtol=1e-6)


@pytest.mark.parametrize(
    "features",
    [
        FeatureConfig(sample_rate=8000, win_length=200, hop_length=80, n_fft=256, n_mels=20, fmax=4000.0),
        FeatureConfig(win_length=512, hop_length=600, n_mels=40, fmin=0.0, floor=1e-3),
        FeatureConfig(win_length=300, n_fft=300, n_mels=12, fmin=100.0, fmax=7000.0),
    ],
)
def test_log_mel_energies_equal_those_of_training_with_other_settings(features):
    detector = dataclasses.replace(random_detector(PLAIN, mels=features.n_mels), features=features)
    *_, energies = opened(giving(clip_model(detector), "log_mel")).run(None, {"waveform": noise(6000)})
    np.testing.assert_allclose(energies, log_mel(jnp.asarray(noise(6000)), features), atol=1e-3)


@EACH
def test_models_follow_the_standard(form):

    def domains(graph):
        for node in graph.node:
            yield node.domain
            for attribute in node.attribute:
                yield from domains(attribute.g)

    for make in (clip_model, step_model):
        model = make(random_detector(FORMS[form]))
        onnx.checker.check_model(model, full_check=True)
        assert {*domains(model.graph)} == {""}
        assert [(item.domain, item.version) for item in model.opset_import] == [("", 21)]


def test_it_is_small(tmp_path):
    codes, others = 1024 * 320, 3 * 4 * 1024 + 3 * 256 + 2 * 3 * 4
    for bits in (4, 8):
        network = LSTMConfig(hidden_size=256, quant=QuantConfig.integer(bits))
        model = clip_model(random_detector(network, mels=64))
        save(model, tmp_path / "model.onnx")
        assert sum(sizes(model).values()) == (tmp_path / "model.onnx").stat().st_size
        assert sizes(model)["weights"] == pytest.approx(codes * bits / 8 + others, abs=200)
        assert bits == 8 or (sizes(model)["front_end"] < 2500 and sizes(model)["graph"] < 12_000)


def test_a_model_can_be_a_tagger(tmp_path):
    detector = random_detector(FRONT)
    model = clip_model(detector)
    save(model, tmp_path / "model.onnx")
    samples, run = open_model(tmp_path / "model.onnx")
    probabilities, logits = run(noise(9000))
    assert samples is None and logits.dtype == np.float32
    np.testing.assert_array_equal(logits, opened(model).run(["logits"], {"waveform": noise(9000)})[0])
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    with pytest.raises(InputError, match="failed on 100 samples"):
        run(noise(100))


def test_a_file_has_metadata(tmp_path):
    detector = random_detector(FRONT)
    for make, form in ((clip_model, "clip"), (step_model, "step")):
        save(make(detector), tmp_path / "model.onnx")
        about = opened(load(tmp_path / "model.onnx")).get_modelmeta().custom_metadata_map
        assert FeatureConfig(**json.loads(about["features"])) == detector.features
        assert tuple(json.loads(about["events"])) == detector.events
        assert float(about["clip_seconds"]) == detector.clip_seconds
        assert (about["form"], about["pooling"]) == (form, "attention")
        assert about["format"] == "qkd_jax ONNX, version 1"
        assert len(about["sha256"]) == 64


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    save(clip_model(random_detector(PLAIN)), path)
    data = load(path)
    assert data == path.read_bytes()
    onnx.checker.check_model(onnx.load_from_string(data))
    places = [*range(0, len(data), 499), *range(len(data) - 80, len(data))]
    changed = [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in places]
    cut = [data[:length] for length in (0, 10, 76, len(data) - 1)]
    for damaged in (*changed, *cut, data + b"\0", onnx.load_from_string(data).SerializeToString()[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"model\.onnx: expected an ONNX model as exported, found dam"):
            load(path)
    with pytest.raises(InputError, match=r"gone\.onnx: expected an exported ONNX model: No such file"):
        load(tmp_path / "gone.onnx")


def test_a_detector_that_overflows_is_refused():
    detector = random_detector(PLAIN)
    layer = detector.lstm[0]._replace(multiplier_x=np.full(96, 1e9, np.float32))
    for make in (clip_model, step_model):
        with pytest.raises(InputError, match=r"lstm\.0: expected values below 2\^29"):
            make(dataclasses.replace(detector, lstm=(layer,)))


def test_a_missing_library_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(libraries.importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"ONNX models: needs onnx: pip install 'qkd_jax\[export\]'"):
        clip_model(random_detector(PLAIN))
