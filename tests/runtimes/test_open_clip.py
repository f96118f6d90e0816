"""Exported files that were changed and given a correct checksum are refused with one line."""

import dataclasses
import importlib.util
import io
import shutil
import zipfile

import numpy as np
import onnx
import pytest

from qkd_jax.errors import InputError
from qkd_jax.runtimes import FORMATS, c_header, litert, onnx_graph, open_clip, write
from qkd_jax.runtimes.onnx import save
from tests.detectors import PLAIN, random_detector
from tests.waveform_models import write_loudness

DETECTOR = dataclasses.replace(random_detector(PLAIN, mels=8), clip_seconds=0.4)
CONTENT = onnx_graph.clip_model(DETECTOR).SerializeToString()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": None}, "expected a model of whole clips"),
        ({"events": None}, "expected a detector as exported: "),
        ({"events": "[1, 2, 3]"}, "events.0: expected text"),
        ({"events": "[" * 100_000}, "expected valid JSON"),
        ({"events": '["a"]'}, r"expected logits of 1 events, found \(3,\)"),
        ({"clip_seconds": "1e999"}, "clip_seconds: "),
        ({"clip_seconds": "1e300"}, "clip_seconds: expected at most"),
        ({"clip_seconds": "-1"}, "clip_seconds: expected more than 0"),
        ({"features": '{"sample_rate": 1e400}'}, "features.sample_rate: "),
    ],
)
def test_onnx_with_other_metadata_is_refused(tmp_path, changes, message):
    model = onnx.ModelProto.FromString(CONTENT)
    metadata = {item.key: item.value for item in model.metadata_props} | changes
    metadata = {key: value for key, value in metadata.items() if value is not None}
    onnx.helper.set_model_props(model, metadata)
    save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=rf"m\.onnx: {message}"):
        open_clip(tmp_path / "m.onnx").clip_logits(np.zeros(6400, np.float32))


def test_onnx_with_other_tensors_is_refused(tmp_path):
    model = onnx.ModelProto.FromString(CONTENT)
    for item in [*model.graph.input, *model.graph.output]:
        item.name = "x" + item.name
    save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"m\.onnx: expected a detector as exported: "):
        open_clip(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("descriptions", "message"),
    [
        ((), "expected a detector as exported: "),
        (("{}",), "events: expected a value, found none"),
        (("[" * 100_000,), "expected valid JSON"),
        (('{"frames": 0, "hop": -1}',), "frames: expected at least 1, got 0"),
        ((" " * (1 << 21) + "{}",), "expected valid JSON"),  # longer than any exported description
    ],
)
def test_litert_with_another_description_is_refused(tmp_path, descriptions, message):
    path = tmp_path / "m.tflite"
    write_loudness(path, (1, 1000), [0.2, 0.5])  # a foreign model, followed by the descriptions
    file = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(file, "a") as archive:
        for text in descriptions:
            archive.writestr(zipfile.ZipInfo("detector.json"), text)
        archive.comment = bytes(64)
    content = file.getvalue()[:-64]
    path.write_bytes(content + litert._digest(content))
    with pytest.raises(InputError, match=rf"m\.tflite: .*{message}"):
        open_clip(path)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b"", "expected valid JSON"),
        (b"\xff\xfe", "expected valid JSON"),
        (b'// {"name": "x(){}"}', "name: expected text that matches"),
        (b"// " + b"[" * 100_000, "expected valid JSON"),
    ],
)
def test_a_header_with_another_description_is_refused(tmp_path, second, message):
    _, _, rest = c_header.to_c(DETECTOR).encode().split(b"\n", 2)
    for content in (second + b"\n" + rest, second):
        (tmp_path / "m.h").write_bytes(c_header.checksum_line(content).encode() + content)
        with pytest.raises(InputError, match=rf"m\.h: .*{message}"):
            open_clip(tmp_path / "m.h")


TOOLS = {"litert": importlib.util.find_spec("litert_converter"), "c": shutil.which("cc")}


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_written_and_opens_as_a_clip(tmp_path, form):
    if not TOOLS.get(form, True):
        pytest.skip(f"needs the tools for {form}")
    waveform = np.random.default_rng(0).normal(0, 0.1, 6400).astype(np.float32)
    path, kind = tmp_path / f"a{FORMATS[form]}", {"onnx": "front end ", "c": "text; flash "}.get(form)
    parts = write(form, DETECTOR, path, {"run": "demo"})
    assert kind in parts if kind else not parts
    exported = open_clip(path)
    assert exported[:3] == (DETECTOR.events, DETECTOR.features, DETECTOR.clip_seconds)
    write("safetensors", DETECTOR, tmp_path / "b.safetensors")
    expected = open_clip(tmp_path / "b.safetensors").clip_logits(waveform)
    np.testing.assert_allclose(exported.clip_logits(waveform), expected, atol=0.1)
    assert list(tmp_path.glob("a-step.onnx")) == ([tmp_path / "a-step.onnx"] if form == "onnx" else [])


def test_a_header_may_have_a_name(tmp_path):
    write("c", DETECTOR, tmp_path / "a.h", name="dog")
    assert "dog_push(&state" in (tmp_path / "a.h").read_text()


def test_another_suffix_is_refused(tmp_path):
    formats = r"\.safetensors, \.onnx, \.tflite or \.h$"
    with pytest.raises(InputError, match=rf"a\.wav: expected a detector in {formats}"):
        open_clip(tmp_path / "a.wav")
