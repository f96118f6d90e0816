"""Exported files changed by somebody who made their checksums right: one line for what isn't as exported."""

import dataclasses
import io
import zipfile

import numpy as np
import onnx
import pytest

from qkd_jax.errors import InputError
from qkd_jax.runtimes import c, litert
from qkd_jax.runtimes import onnx as deploy_onnx
from qkd_jax.runtimes.exported import open_exported
from tests.detectors import PLAIN, random_detector
from tests.waveform_models import write_loudness

DETECTOR = dataclasses.replace(random_detector(PLAIN, mels=8), clip_seconds=0.4)
MODEL = deploy_onnx.clip_model(DETECTOR)


def said(model, **changes):
    """`model` that says other things of itself, None for nothing."""
    about = {item.key: item.value for item in model.metadata_props} | changes
    onnx.helper.set_model_props(model, {key: value for key, value in about.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": None}, "expected a model of whole clips"),
        ({"events": None}, "expected a detector as exported: "),
        ({"events": "[1, 2, 3]"}, "events.0: Input should be a valid string"),
        ({"events": "[" * 100_000}, "Invalid JSON"),
        ({"events": '["a"]'}, r"expected logits of 1 events, found \(3,\)"),
        ({"clip_seconds": "1e999"}, "clip_seconds: "),
        ({"clip_seconds": "1e300"}, "clip_seconds: Input should be less than"),
        ({"clip_seconds": "-1"}, "clip_seconds: Input should be greater than 0"),
        ({"features": '{"sample_rate": 1e400}'}, "features.sample_rate: "),
    ],
)
def test_onnx_that_says_other_things_is_refused(tmp_path, changes, message):
    model = onnx.ModelProto.FromString(MODEL.SerializeToString())
    said(model, **changes)
    deploy_onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=rf"m\.onnx: {message}"):
        open_exported(tmp_path / "m.onnx").clip_logits(np.zeros(6400, np.float32))


def test_onnx_that_computes_other_things_is_refused(tmp_path):
    model = onnx.ModelProto.FromString(MODEL.SerializeToString())
    for item in [*model.graph.input, *model.graph.output]:
        item.name = "x" + item.name
    deploy_onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"m\.onnx: expected a detector as exported: "):
        open_exported(tmp_path / "m.onnx")


def litert_file(path, *descriptions):
    """A model that is none of ours, behind it each of `descriptions`."""
    write_loudness(path, (1, 1000), [0.2, 0.5])
    file = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(file, "a") as archive:
        for text in descriptions:
            archive.writestr(zipfile.ZipInfo("detector.json"), text)
        archive.comment = bytes(64)
    content = file.getvalue()[:-64]
    path.write_bytes(content + litert._digest(content))


@pytest.mark.parametrize(
    ("descriptions", "message"),
    [
        ((), "expected a detector as exported: "),
        (("{}",), "events: Field required"),
        (("[" * 100_000,), "Invalid JSON"),
        (('{"frames": 0, "hop": -1}',), "frames: Input should be greater than or equal to 1, got 0"),
        ((" " * (1 << 21) + "{}",), "Invalid JSON"),  # longer than any that was exported
    ],
)
def test_litert_that_says_other_things_is_refused(tmp_path, descriptions, message):
    litert_file(tmp_path / "m.tflite", *descriptions)
    with pytest.raises(InputError, match=rf"m\.tflite: .*{message}"):
        open_exported(tmp_path / "m.tflite")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b'// {"name": "x(){}"}', "name: String should match pattern"),
        (b"// " + b"[" * 100_000, "Invalid JSON"),
    ],
)
def test_a_header_that_says_other_things_is_refused(tmp_path, second, message):
    _, _, rest = c.to_c(DETECTOR).encode().split(b"\n", 2)
    for content in (second + b"\n" + rest, second):
        (tmp_path / "m.h").write_bytes(c.checksum_line(content).encode() + content)
        with pytest.raises(InputError, match=rf"m\.h: .*{message}"):
            open_exported(tmp_path / "m.h")
