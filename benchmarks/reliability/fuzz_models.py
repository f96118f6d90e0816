"""What reads models, foreign ones and exported detectors, and models for it."""

import dataclasses
import functools
import io
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soundfile

from benchmarks.reliability import mutate, mutate_binary
from benchmarks.reliability.fuzz_targets import EVENTS, Target, noise, texts
from qkd_jax.config import LSTMConfig
from qkd_jax.data.clips import Clip
from qkd_jax.detector import events
from qkd_jax.detector import file as artefact
from qkd_jax.detector import resume as kept
from qkd_jax.detector.detector import Detector
from qkd_jax.detector.stream import in_numpy
from qkd_jax.distill import tagger
from qkd_jax.distill.waveform_model import open_inner, open_model, open_untried, run_once
from qkd_jax.errors import InputError
from qkd_jax.runtimes import c, c_run, litert
from qkd_jax.runtimes import onnx as deploy_onnx
from qkd_jax.runtimes.exported import open_exported
from qkd_jax.runtimes.exported import open_untried as open_untried_detector
from tests.artefacts import mutated as mutated_artefact
from tests.detectors import DEEP, FRONT, PLAIN, random_detector
from tests.waveform_models import write_loudness

# Foreign teachers


def _make_onnx(folder: Path) -> None:
    for index, shape in enumerate(((1, 1000), ("samples",))):
        (folder / str(index)).mkdir(parents=True)
        write_loudness(folder / f"{index}/model.onnx", shape, [0.2, 0.5])
    (folder / "2").mkdir()
    model = deploy_onnx.clip_model(dataclasses.replace(random_detector(FRONT, mels=8), clip_seconds=0.4))
    (folder / "2/model.onnx").write_bytes(model.SerializeToString())


def _make_litert(folder: Path) -> None:
    for index, shape in enumerate(((1, 1000), (1, "samples"))):
        (folder / str(index)).mkdir(parents=True)
        write_loudness(folder / f"{index}/model.tflite", shape, [0.2, 0.5])


def _run_model(run: Callable[..., Any], folder: Path) -> None:
    for path in folder.iterdir():
        run(path)


def _run_layer(run: Callable[..., Any], folder: Path) -> None:
    run(folder / "model.tflite", "absolute/codes")


_TAGGER = {
    "tagger.toml": 'file = "model.onnx"\nclasses = "classes.csv"\noutput = "logits"\nsample_rate = 8000\n'
    'window_seconds = 0.125\nhop_seconds = 0.0625\n[events]\nbell = ["Bell", "Chime"]\nknock = ["Knock"]\n',
    "classes.csv": "index,mid,display_name\n0,/m/1,Bell\n1,/m/2,Knock\n2,/m/3,Chime\n",
}
_PLAIN_TAGGER = {
    "tagger.toml": _TAGGER["tagger.toml"].replace("classes.csv", "classes.txt"),
    "classes.txt": "Bell\nKnock\nChime\n",
}


def _read_tagger(folder: Path) -> None:
    """With a model of ours, opened without being tried each time."""
    tagger.open_model = open_untried
    recording = folder / "a.wav"
    soundfile.write(recording, noise(4000), 16_000)
    write_loudness(folder / "model.onnx", (1, 1000), [0.2, 0.5, 0.3])
    clip = Clip(name="a.wav", root=recording.parent, labels=frozenset(), group="a")
    tagger.tagger_logits(folder / "tagger.toml", [clip], EVENTS, folder / "cache")


# Exported detectors, and the checksums that belong to them


def _detector(student: LSTMConfig) -> Detector:
    return dataclasses.replace(random_detector(student, mels=8), clip_seconds=0.4)


def _make_exported(suffix: str, write: Callable[[Detector, Path], Any], folder: Path) -> None:
    for index, student in enumerate((PLAIN, FRONT, DEEP)):
        (folder / str(index)).mkdir(parents=True)
        write(_detector(student), folder / f"{index}/detector{suffix}")


def _read_exported(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        exported = open_untried_detector(path)
        exported.clip_logits(noise(round(exported.clip_seconds * exported.features.sample_rate)))


def _read_header(folder: Path) -> None:
    """Up to the compiler, which would take a second."""
    os.environ["CC"] = "false"
    for path in sorted(folder.iterdir()):
        try:
            c_run.compile_c(path)
        except InputError as error:
            if "false failed" not in str(error):
                raise


def _make_states(folder: Path) -> None:
    _make_exported(".safetensors", artefact.save, folder)
    for path in folder.glob("*/detector.safetensors"):
        detector = artefact.load(path)
        runtime = in_numpy(detector)
        rule = events.rule_of(detector)
        heard, _ = events.hear(runtime, rule, events.begin(runtime, rule), noise(8000))
        kept.save(path.with_name("kept.state"), kept.owner(path, "numpy", detector.detection), heard)


def _read_state(folder: Path) -> None:
    """And go on with it."""
    path = folder / "detector.safetensors"
    detector = artefact.load(path)
    runtime = in_numpy(detector)
    of = kept.owner(path, "numpy", detector.detection)
    heard = kept.load(folder / "kept.state", of, runtime)
    events.hear(runtime, events.rule_of(detector), heard, noise(4000))


def _sealed_onnx(rng: random.Random, data: bytes) -> bytes:
    content = mutate_binary.onnx(rng, data[: -len(deploy_onnx._checksum(b""))])
    return content + deploy_onnx._checksum(content)


def _sealed_litert(rng: random.Random, data: bytes) -> bytes:
    """What lies behind the model says other things of it."""
    begin = data.index(b"PK\x03\x04")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        said = archive.read(litert._FILE)
    file = io.BytesIO(data[:begin])
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(litert._FILE), mutate.json_text(rng, said))
        archive.comment = bytes(litert._DIGITS)
    content = file.getvalue()[: -litert._DIGITS]
    return content + litert._digest(content)


def _sealed_header(rng: random.Random, data: bytes) -> bytes:
    """The header's second line says other things of it."""
    _, said, rest = data.split(b"\n", 2)
    rest = b"// " + mutate.json_text(rng, said.removeprefix(b"// ")).replace(b"\n", b"") + b"\n" + rest
    return c.checksum_line(rest).encode() + rest


MODELS = (
    Target("tagger", texts(_TAGGER, _PLAIN_TAGGER), _read_tagger),
    Target(
        "ONNX teacher",
        _make_onnx,
        functools.partial(_run_model, run_once),
        guard=functools.partial(_run_model, open_model),
    ),
    Target(
        "LiteRT teacher",
        _make_litert,
        functools.partial(_run_model, run_once),
        guard=functools.partial(_run_model, open_model),
    ),
    Target(
        "LiteRT layer",
        _make_litert,
        functools.partial(_run_layer, run_once),
        guard=functools.partial(_run_layer, open_inner),
    ),
    Target(
        "exported .onnx",
        functools.partial(
            _make_exported,
            ".onnx",
            lambda detector, path: deploy_onnx.save(deploy_onnx.clip_model(detector), path),
        ),
        _read_exported,
        ((".onnx", _sealed_onnx),),
        functools.partial(_run_model, open_exported),
    ),
    Target(
        "exported .tflite",
        functools.partial(
            _make_exported,
            ".tflite",
            lambda detector, path: path.write_bytes(litert.to_litert(detector)),
        ),
        _read_exported,
        ((".tflite", _sealed_litert),),
        functools.partial(_run_model, open_exported),
    ),
    Target(
        "exported .h",
        functools.partial(_make_exported, ".h", lambda detector, path: path.write_text(c.to_c(detector))),
        _read_header,
        ((".h", _sealed_header),),
    ),
    Target(
        "artefact",
        functools.partial(_make_exported, ".safetensors", artefact.save),
        _read_exported,
        ((".safetensors", lambda rng, data: mutated_artefact(rng, [data])),),
    ),
    Target(
        "state",
        _make_states,
        _read_state,
        ((".state", lambda rng, data: mutated_artefact(rng, [data])),),
    ),
)
