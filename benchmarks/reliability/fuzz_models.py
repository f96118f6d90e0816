"""Readers of models, foreign ones and exported detectors, and models for them."""

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

from benchmarks.reliability import mutate
from benchmarks.reliability.fuzz_targets import EVENTS, Target, noise, texts
from qkd_jax.config import LSTMConfig
from qkd_jax.data.clips import Clip
from qkd_jax.detector import events, file, resume
from qkd_jax.detector.detector import Detector
from qkd_jax.detector.stream import in_numpy
from qkd_jax.distill import tagger
from qkd_jax.distill.waveform_model import open_model, open_untried, run_once
from qkd_jax.errors import InputError
from qkd_jax.runtimes import c, c_header, litert, onnx_graph, open_clip, open_unguarded, write
from tests.artefacts import mutated as mutated_detector
from tests.detectors import DEEP, FRONT, PLAIN, random_detector
from tests.waveform_models import write_loudness

TAGGER = {
    "tagger.toml": 'file = "model.onnx"\nclasses = "classes.csv"\noutput = "logits"\nsample_rate = 8000\n'
    'window_seconds = 0.125\nhop_seconds = 0.0625\n[events]\nbell = ["Bell", "Chime"]\nknock = ["Knock"]\n',
    "classes.csv": "index,mid,display_name\n0,/m/1,Bell\n1,/m/2,Knock\n2,/m/3,Chime\n",
}
PLAIN_TAGGER = {
    "tagger.toml": TAGGER["tagger.toml"].replace("classes.csv", "classes.txt"),
    "classes.txt": "Bell\nKnock\nChime\n",
}


def _make_foreign(suffix: str, folder: Path) -> None:
    for index, shape in enumerate(((1, 1000), ("samples",) if suffix == ".onnx" else (1, "samples"))):
        (folder / str(index)).mkdir(parents=True)
        write_loudness(folder / f"{index}/model{suffix}", shape, [0.2, 0.5])
    if suffix == ".onnx":
        (folder / "2").mkdir()
        model = onnx_graph.clip_model(_detector(FRONT))
        (folder / "2/model.onnx").write_bytes(model.SerializeToString())


def _each(run: Callable[..., Any], *arguments: Any) -> Callable[[Path], None]:
    """A function that calls `run` on each file of a folder."""

    def read(folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            run(path, *arguments)

    return read


def _read_tagger(folder: Path) -> None:
    """Read a tagger's settings and apply it, with our model, opened without a trial each time."""
    tagger.open_model = open_untried
    recording = folder / "a.wav"
    soundfile.write(recording, noise(4000), 16_000)
    write_loudness(folder / "model.onnx", (1, 1000), [0.2, 0.5, 0.3])
    clip = Clip(name="a.wav", root=recording.parent, labels=frozenset(), group="a")
    tagger.tagger_logits(folder / "tagger.toml", [clip], EVENTS, folder / "cache")


def _detector(network: LSTMConfig) -> Detector:
    return dataclasses.replace(random_detector(network, mels=8), clip_seconds=0.4)


def _make_exported(form: Any, suffix: str, folder: Path) -> None:
    for index, network in enumerate((PLAIN, FRONT, DEEP)):
        path = folder / f"{index}/detector{suffix}"
        path.parent.mkdir(parents=True)
        write(form, _detector(network), path)
        for step in path.parent.glob("*-step.onnx"):  # not a clip form
            step.unlink()


def _run_exported(path: Path) -> None:
    exported = open_unguarded(path)
    exported.clip_logits(noise(round(exported.clip_seconds * exported.features.sample_rate)))


def _read_header(path: Path) -> None:
    """Read a header up to the compiler, which would take a second."""
    os.environ["CC"] = "false"
    try:
        c.compile_c(path.read_bytes(), path)
    except InputError as error:
        if "false failed" not in str(error):
            raise


def _make_states(folder: Path) -> None:
    _make_exported("safetensors", ".safetensors", folder)
    for path in folder.glob("*/detector.safetensors"):
        detector = file.load(path)
        runtime, rule = in_numpy(detector), events.event_rule(detector)
        state, _ = events.process(runtime, rule, events.begin(runtime, rule), noise(8000))
        resume.save(path.with_name("kept.state"), resume.owner(path, "numpy", detector.event_config), state)


def _read_state(folder: Path) -> None:
    """Read a state and continue from it."""
    path = folder / "detector.safetensors"
    detector = file.load(path)
    runtime, owner = in_numpy(detector), resume.owner(path, "numpy", detector.event_config)
    state = resume.load(folder / "kept.state", owner, runtime)
    events.process(runtime, events.event_rule(detector), state, noise(4000))


def _sealed_onnx(rng: random.Random, data: bytes) -> bytes:
    content = mutate.onnx(rng, data[: -len(onnx_graph.checksum(b""))])
    return content + onnx_graph.checksum(content)


def _sealed_litert(rng: random.Random, data: bytes) -> bytes:
    """Change the description behind the model."""
    begin = data.index(b"PK\x03\x04")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        description = archive.read(litert._FILE)
    changed = io.BytesIO(data[:begin])
    with zipfile.ZipFile(changed, "a") as archive:
        archive.writestr(zipfile.ZipInfo(litert._FILE), mutate.json_text(rng, description))
        archive.comment = bytes(litert._DIGITS)
    content = changed.getvalue()[: -litert._DIGITS]
    return content + litert._digest(content)


def _sealed_header(rng: random.Random, data: bytes) -> bytes:
    """Change the description in the header's second line."""
    _, line, rest = data.split(b"\n", 2)
    rest = b"// " + mutate.json_text(rng, line.removeprefix(b"// ")).replace(b"\n", b"") + b"\n" + rest
    return c_header.checksum_line(rest).encode() + rest


def _sealed_archive(rng: random.Random, data: bytes) -> bytes:
    return mutated_detector(rng, [data])


def _exported(form: str, suffix: str, mutator: mutate.Mutator, read: Any, guard: bool = False) -> Target:
    make = functools.partial(_make_exported, form, suffix)
    return Target(
        f"exported {suffix}", make, _each(read), {suffix: mutator}, _each(open_clip) if guard else None
    )


_ONNX, _LITERT = (functools.partial(_make_foreign, suffix) for suffix in (".onnx", ".tflite"))
_LAYER = "absolute/codes"
MODELS = (
    Target("tagger", texts(TAGGER, PLAIN_TAGGER), _read_tagger),
    Target("ONNX teacher", _ONNX, _each(run_once), guard=_each(open_model)),
    Target("LiteRT teacher", _LITERT, _each(run_once), guard=_each(open_model)),
    Target("LiteRT layer", _LITERT, _each(run_once, _LAYER), guard=_each(open_model, _LAYER)),
    _exported("onnx", ".onnx", _sealed_onnx, _run_exported, guard=True),
    _exported("litert", ".tflite", _sealed_litert, _run_exported, guard=True),
    _exported("c", ".h", _sealed_header, _read_header),
    _exported("safetensors", ".safetensors", _sealed_archive, _run_exported),
    Target("state", _make_states, _read_state, {".state": _sealed_archive}),
)
