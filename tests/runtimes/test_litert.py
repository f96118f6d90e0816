"""LiteRT models: their weights are the detector's codes, their steps close to the integer-only scheme's."""

import dataclasses
import functools
import json
import math
import zipfile

import numpy as np
import pytest

from qkd_jax.config import LSTMConfig, QuantConfig, to_json
from qkd_jax.detector import reference
from qkd_jax.detector.codes import LOGIT_EXPONENT
from qkd_jax.errors import InputError
from qkd_jax.quant.pack import unpack
from qkd_jax.runtimes import litert
from qkd_jax.system import libraries
from tests.detectors import DEEP, FRONT, PLAIN, random_codes, random_detector, with_bits

pytest.importorskip("litert_converter", reason="pip install --no-deps litert-converter")

NETWORKS = pytest.mark.parametrize(
    "network",
    [PLAIN, LSTMConfig(hidden_size=7, quant=QuantConfig.integer(2)), FRONT, with_bits(FRONT, 5), DEEP],
    ids=["plain", "odd", "front", "front5", "deep"],
)
INT4 = 17  # the number of the type in TFLite's schema


def detector_of(network):
    """A random detector whose LSTM forgets, so that a single rounding can't change all later steps.

    A column of each convolution has a negative multiplier, as batch-norm may give; cells reach their limits.
    """

    def signed(multiplier):
        return multiplier * np.where(np.arange(len(multiplier)) == 1, -1, 1).astype(np.float32)

    detector = random_detector(network)
    front = (conv._replace(multiplier=signed(conv.multiplier)) for conv in detector.front)
    lstm = (layer._replace(multiplier_h=layer.multiplier_h / 2, cell_exponent=13) for layer in detector.lstm)
    return dataclasses.replace(detector, front=tuple(front), lstm=tuple(lstm))


@functools.cache
def converted(network):
    return litert.to_litert(detector_of(network))


def loaded(content, folder):
    (folder / "model.tflite").write_bytes(content)
    return litert.load(folder / "model.tflite")


def log_mel_of(detector, frames, *, seed=1):
    """Log-mel energies, some of them beyond the range of the input codes."""
    codes = random_codes(detector, frames, seed=seed) * 1.3 / 2.0**detector.input_exponent
    return (codes * detector.std + detector.mean).astype(np.float32)


def joined(outputs, attention):
    return np.concatenate([outputs] if attention is None else [outputs, attention], axis=-1)


@NETWORKS
def test_weights_are_the_codes_of_the_detector(network):
    from ai_edge_litert import schema_py_generated as schema

    detector = detector_of(network)
    model = schema.Model.GetRootAs(converted(network))
    codes_of, in_four_bits = [], 0
    for tensor in map(model.Subgraphs(0).Tensors, range(model.Subgraphs(0).TensorsLength())):
        if tensor.Quantization() is None or not tensor.Quantization().ScaleLength():
            continue
        shape, data = tensor.ShapeAsNumpy(), model.Buffers(tensor.Buffer()).DataAsNumpy()
        if tensor.Type() == INT4:
            in_four_bits += 1
            codes = (unpack(data, 4, math.prod(shape.tolist())).astype(np.int8) ^ 8) - 8
        else:
            codes = data.view(np.int8)
        outputs_first = np.moveaxis(codes.reshape(shape), tensor.Quantization().QuantizedDimension(), 0)
        codes_of.append(outputs_first.reshape(len(outputs_first), -1).tolist())

    linear = [detector.output, detector.attention] if detector.attention else [detector.output]
    products = [(part.w, part.multiplier) for part in (*detector.front, *linear)]
    for layer in detector.lstm:
        products += [(layer.w_h, layer.multiplier_h), (layer.w_x, layer.multiplier_x)]
    expected = [
        np.moveaxis(w * np.sign(multiplier), -1, 0).reshape(len(multiplier), -1).tolist()
        for w, multiplier in products
    ]
    assert any(-1 in np.sign(multiplier) for _, multiplier in products) == bool(detector.front)
    assert sorted(codes_of) == sorted(expected)
    # A first convolution, which is depthwise, and output layers have 8 bits.
    small = len(detector.front[1:]) + 2 * len(detector.lstm)
    assert in_four_bits == (small if network.quant.weights <= 4 else 0)


@NETWORKS
def test_a_step_differs_by_less_than_a_code_of_h(tmp_path, network):
    detector = detector_of(network)
    runner = loaded(converted(network), tmp_path)
    about, log_mel = runner.description, log_mel_of(detector, 400)
    codes, scale = reference.input_codes(detector, log_mel), 2.0 ** -(network.quant.activations - 1)

    def floats(cells):
        parts = ((cell.h * scale, cell.c / 2.0**13) for cell in cells)
        return tuple(part[None].astype(np.float32) for pair in parts for part in pair)

    state, *_ = reference.advance(detector, reference.start(detector), codes[: about.frames - about.hop])
    off_h, off_c, off_logits = [], [], []
    for end in range(about.frames, len(codes) + 1, about.hop):
        after, logits, attention = runner.step(floats(state.cells), log_mel[end - about.frames : end])
        state, *outputs = reference.advance(detector, state, codes[end - about.hop : end])
        (expected,) = joined(*outputs) / 2.0**LOGIT_EXPONENT
        off_h += [got - want for got, want in zip(after[::2], floats(state.cells)[::2])]
        off_c += [got - want for got, want in zip(after[1::2], floats(state.cells)[1::2])]
        off_logits.append(joined(logits, attention) - expected)
        for cell in after[1::2]:
            # Cells are rounded as in integers: differences would add up over a clip.
            np.testing.assert_array_equal(cell * 2.0**13, np.rint(cell * 2.0**13))
    # Integers round h to its scale; LiteRT rounds it to 1/255 of its range, which is up to 2 wide.
    for off, most in ((off_h, 0.7 * scale), (off_c, scale), (off_logits, 0.02)):
        assert np.sqrt(np.mean(np.square(off))) < most
        assert np.abs(np.mean(off)) < most / 10
        assert np.abs(off).max() < 10 * most


@NETWORKS
def test_a_clip_is_close_to_the_integers(tmp_path, network):
    detector = detector_of(network)
    runner, log_mel = loaded(converted(network), tmp_path), log_mel_of(detector, 600)
    codes = reference.input_codes(detector, log_mel)
    logits, attention = runner.run(log_mel)
    _, *expected = reference.advance(detector, reference.start(detector), codes)
    assert logits.dtype == np.float32 and logits.shape == expected[0].shape
    assert (attention is None) == (expected[1] is None)
    off = joined(logits, attention) - joined(*expected) / 2.0**LOGIT_EXPONENT
    assert np.sqrt(np.mean(off**2)) < 0.02
    in_codes = [None if answer is None else answer * 2.0**LOGIT_EXPONENT for answer in (logits, attention)]
    pooled = reference.pooled(detector.network.pooling, *in_codes)
    np.testing.assert_allclose(pooled, reference.clip_logits(detector, codes), atol=0.03)


@NETWORKS
def test_streams_give_the_steps_of_clips(tmp_path, network):
    detector, runner = detector_of(network), loaded(converted(network), tmp_path)
    about, clips = runner.description, [log_mel_of(detector, 90, seed=seed) for seed in (1, 2)]
    states, found = [runner.start] * 2, ([], [])
    for first in range(0, 90 - about.frames + 1, about.hop):
        for stream, clip in enumerate(clips):  # the streams take turns
            states[stream], *answers = runner.step(states[stream], clip[first : first + about.frames])
            found[stream].append(joined(*answers))
    for clip, steps in zip(clips, found):
        np.testing.assert_array_equal(joined(*runner.run(clip)), steps)
        assert len(steps) == network.steps(90)
    assert all(not part.any() for part in runner.start)
    assert joined(*runner.run(clips[0][: about.frames - 1])).shape == (0, len(steps[0]))


def test_weights_take_their_bits():
    networks = [with_bits(LSTMConfig(hidden_size=96), bits) for bits in (8, 5, 4, 2)]
    eight, five, four, two = (len(litert.to_litert(random_detector(network))) for network in networks)
    count = (96 + 32) * 4 * 96
    assert five == eight and two == four
    assert count < eight < count + 19_000 < 4 * count
    assert abs(eight - four - count / 2) < 100


def test_the_same_detector_gives_the_same_bytes():
    assert litert.to_litert(detector_of(FRONT)) == converted(FRONT)


def test_the_file_describes_its_use(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    detector, runner = detector_of(FRONT), loaded(converted(FRONT), tmp_path)
    signature = Interpreter(str(tmp_path / "model.tflite")).get_signature_runner("step")
    details = signature.get_input_details() | signature.get_output_details()
    shapes = {name: item["shape"].tolist() for name, item in details.items()}
    state = {name: [1, 16] for name in ("h0", "c0", "next_h0", "next_c0")}
    assert shapes == {"frames": [15, 32], "logits": [1, 3], "attention": [1, 3], **state}
    about = runner.description
    assert (about.events, about.features) == (detector.events, detector.features)
    assert (about.clip_seconds, about.pooling) == (detector.clip_seconds, "attention")
    assert (about.frames, about.hop) == (15, 4)
    with zipfile.ZipFile(tmp_path / "model.tflite") as archive:
        assert archive.testzip() is None
        assert json.loads(archive.read("detector.json"))["events"] == list(detector.events)


def test_damage_is_detected(tmp_path):
    content, damaged = converted(PLAIN), []
    for place in [*range(0, len(content), 997), *range(len(content) - 400, len(content), 7), -1]:
        damaged.append(bytearray(content))
        damaged[-1][place] ^= 1
    others = (b"", content[:-1], content[: len(content) // 2], content + b"\0", content[:-64])
    for other in (*damaged, *others):
        with pytest.raises(InputError, match=r"model\.tflite: .* found damaged or other content"):
            loaded(bytes(other), tmp_path)

    for missing, why in ((tmp_path / "none.tflite", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=f"{missing.name}: expected an exported LiteRT model: {why}"):
            litert.load(missing)


def test_another_version_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(litert, "to_json", lambda about: to_json(about).replace("version 1", "version 2"))
    with pytest.raises(InputError, match=r"model\.tflite: format: .*version 1.*, got .*version 2"):
        loaded(litert.to_litert(detector_of(PLAIN)), tmp_path)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    content = converted(PLAIN)

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(libraries.importlib, "import_module", missing)
    for library, pip, use in (
        ("litert_converter", "--no-deps litert-converter", lambda: litert.to_litert(detector_of(PLAIN))),
        ("ai_edge_litert", r"'qkd_jax\[taggers\]'", lambda: loaded(content, tmp_path)),
    ):
        with pytest.raises(InputError, match=f"LiteRT models: needs {library}: pip install {pip}"):
            use()
