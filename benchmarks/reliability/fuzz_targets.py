"""Everything that reads a file, and files for it."""

import dataclasses
import functools
import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from benchmarks.reliability import mutate
from benchmarks.reliability.mutate import Mutator
from qkd_jax.config import (
    Config,
    DataConfig,
    DistillConfig,
    FeatureConfig,
    InputError,
    StudentConfig,
    to_json,
)
from qkd_jax.config_sed import CRNNConfig, DetectorConfig, SedConfig, SedTrainConfig
from qkd_jax.data.cache import _entry
from qkd_jax.data.clips import Clip, Span, read_clip_list, summary, with_splits, write_clips
from qkd_jax.data.dataset import Dataset
from qkd_jax.data.features import CachedFeatures, cached_features, recording_features
from qkd_jax.data.logits import StepLogits, read_logits, read_step_logits, write_logits, write_step_logits
from qkd_jax.data.source import read_clips
from qkd_jax.deploy import artefact, c, litert
from qkd_jax.deploy import onnx as deploy_onnx
from qkd_jax.deploy.detector import Detector
from qkd_jax.deploy.exported import open_exported
from qkd_jax.distill import tagger
from qkd_jax.distill.waveform_model import open_inner, open_model, open_untried, run_once
from qkd_jax.train import checkpoint
from qkd_jax.train.folder import Run, load_run
from qkd_jax.train.log import read_epochs, read_log
from qkd_jax.train.sed_teachers import taught
from qkd_jax.train.state import TrainState
from qkd_jax.train.teachers import foreign_logits
from tests.artefacts import mutated as mutated_artefact
from tests.detectors import DEEP, FRONT, PLAIN, random_detector
from tests.waveform_models import write_loudness


class Target(NamedTuple):
    """A reader: `make` fills folders below the one it is given, each with files that `read` can read.

    Of what ends a process, `guard` is then called, where a process of its own is tried before; it shall refuse.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    mutators: tuple[tuple[str, Mutator], ...] = mutate.MUTATORS
    guard: Callable[[Path], Any] | None = None


FEATURES = FeatureConfig(n_mels=8)
EVENTS = ("bell", "knock")
NAMES = ("a.wav", "b/b.wav", "ü.wav")


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


# Recordings

PCM = (
    ("WAV", "PCM_16", 16_000, 2),
    ("WAV", "PCM_24", 44_100, 1),
    ("WAV", "FLOAT", 16_000, 1),
    ("WAV", "DOUBLE", 8_000, 1),
    ("WAV", "IMA_ADPCM", 16_000, 1),
    ("WAV", "MS_ADPCM", 16_000, 1),
    ("WAV", "ULAW", 8_000, 1),
    ("AIFF", "PCM_16", 16_000, 1),
    ("AU", "PCM_16", 16_000, 1),
    ("CAF", "ALAC_16", 16_000, 1),
    ("W64", "PCM_16", 16_000, 1),
    ("RF64", "PCM_16", 16_000, 1),
)
COMPRESSED = (
    ("FLAC", "PCM_16", 16_000, 2),
    ("FLAC", "PCM_24", 44_100, 1),
    ("OGG", "VORBIS", 16_000, 1),
    ("OGG", "OPUS", 16_000, 2),
    ("MP3", "MPEG_LAYER_III", 16_000, 1),
)


def _recordings(kinds: tuple[tuple[str, str, int, int], ...], folder: Path) -> None:
    for index, (form, subtype, rate, channels) in enumerate(kinds):
        path = folder / str(index) / f"recording.{form.lower()}"
        path.parent.mkdir(parents=True)
        soundfile.write(path, _noise(rate // 8, channels), rate, format=form, subtype=subtype)


def _read_recording(folder: Path) -> None:
    for path in folder.iterdir():
        recording_features(path, FEATURES)


# Tables


def _texts(*inputs: dict[str, str]) -> Callable[[Path], None]:
    """Makes these files."""

    def make(folder: Path) -> None:
        for index, files in enumerate(inputs):
            for name, text in files.items():
                path = folder / str(index) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    return make


def _read_source(source: str, folder: Path) -> None:
    config = DataConfig(source=source, root=str(folder))
    clips = read_clips(config)
    events = sorted(set().union(*(clip.labels for clip in clips)))
    clips = with_splits(clips, events)
    said = summary(clips, events).splitlines()
    assert all(line.isprintable() for line in said), "expected lines that can be printed"
    for clip in clips:
        inside = os.path.normpath(clip.path)
        assert inside.startswith(f"{folder}{os.sep}"), "expected a path within the root"
    write_clips(folder / "clips.jsonl", clips)
    assert read_clip_list(folder / "clips.jsonl", folder) == clips


_MANIFEST = "filename,labels,split,group\na.wav,bell;knock,train,1\nb/b.wav,,valid,2\nc.wav,knock,test,3\n"
_AUDIOSET = {
    "class_labels_indices.csv": 'index,mid,display_name\n0,/m/01,Bell\n1,/m/02,"Knock, on wood"\n',
    "eval_segments.csv": '# Segments\n# a\nabcdefghijk, 0.000, 10.000, "/m/01,/m/02"\n-Yzabcdefgh, 3.0, 13.0, "/m/02"\n',
    "x/Yabcdefghijk_0.wav": "",
    "-Yzabcdefgh.flac": "",
}
_ESC50 = "filename,fold,target,category,esc10,src_file,take\n1.wav,1,0,dog,True,100,A\n2.wav,4,1,cat,False,200,A\n"
_DESED = {
    "train/audio/a.wav": "",
    "train/strong.tsv": "filename\tonset\toffset\tevent_label\na.wav\t0.5\t1.25\tbell\na.wav\t1\t2\tknock\nc.wav\n",
    "train/weak.tsv": "filename\tevent_labels\nb.wav\tbell,knock\nc.wav\n",
    "train/durations.tsv": "filename\tduration\na.wav\t10.0\nd.wav\t10.0\n",
    "valid/audio/a.wav": "",
    "valid/strong.tsv": "filename\tonset\toffset\tevent_label\na.wav\t0.5\t1.25\tbell\n",
}


# Arrays of foreign teachers and of a run


def _make_logits(folder: Path) -> None:
    write_logits(folder / "0/logits.npz", NAMES, EVENTS, _noise(3, 2))
    np.savez(folder / "0/plain.npz", names=NAMES, events=EVENTS, logits=_noise(3, 2))


def _read_logits(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        read_logits(path, NAMES[::2], EVENTS)


def _make_steps(folder: Path) -> None:
    said = StepLogits(_noise(3, 2), _noise(3, 5, 2), abs(_noise(2)), (4, 2))
    write_step_logits(folder / "0/steps.npz", NAMES, EVENTS, said)


def _read_steps(folder: Path) -> None:
    read_step_logits(folder / "steps.npz", NAMES[::2], EVENTS)


def _make_cache(folder: Path) -> None:
    (folder / "0").mkdir(parents=True)
    soundfile.write(folder / "0/a.wav", _noise(4000), 16_000)
    os.utime(folder / "0/a.wav", (0, 0))
    np.save(folder / "0/features.npy", _noise(23, 8))


def _read_cache(folder: Path) -> None:
    """Features where the cache has them, under the name that they have there."""
    recording, features = folder / "a.wav", folder / "features.npy"
    soundfile.write(recording, _noise(4000), 16_000)
    os.utime(recording, (0, 0))
    clip = Clip(name="a.wav", path=recording, labels=frozenset(), group="a")
    entries, _ = cached_features([], FEATURES, folder)
    settings = f"2 {to_json(FEATURES)}"
    entry = folder / _entry(recording, settings)
    entry.parent.mkdir()
    if features.exists():
        features.rename(entry)
    entries, bad = cached_features([clip], FEATURES, folder)
    assert not bad, bad
    (mapped,) = CachedFeatures([entries["a.wav"]])
    Run(folder, RUN).norm([mapped])


CLIPS = tuple(
    Clip(name=name, path=Path(name), labels=frozenset(EVENTS[:index]), group=name, split="train")
    for index, name in enumerate(NAMES)
)
RUN = Config(
    features=FEATURES,
    data=DataConfig(root="data", events=EVENTS, clip_seconds=0.4),
    students={"plain": StudentConfig(units=4)},
    distill=DistillConfig(teachers=("logits.npz",)),
)
SED = SedConfig(
    features=FEATURES,
    data=DataConfig(source="desed", root="data", events=EVENTS, clip_seconds=0.4),
    models={"guided": DetectorConfig(network=CRNNConfig(channels=(2,), pools=((2, 2),), units=2, layers=1), embeddings="tagger.toml")},
    train=SedTrainConfig(strong=1, weak=0, unlabelled=0),
)


def _make_arrays(folder: Path) -> None:
    (folder / "0/guided").mkdir(parents=True)
    np.savez(folder / "0/norm.npz", mean=_noise(8), std=1 + abs(_noise(8)))
    np.save(folder / "0/foreign.npy", _noise(1, 3, 2))
    steps = SED.models["guided"].network.steps(SED.frames)
    rows = _noise(3, 5, 6).astype(np.float16)
    np.savez(folder / "0/guided/embeddings.npz", rows=rows, row_of_step=np.arange(steps) % 5, size=6)


def _read_arrays(folder: Path) -> None:
    if (folder / "norm.npz").exists():
        Run(folder, RUN).norm([])
    if (folder / "foreign.npy").exists():
        foreign_logits(Run(folder, RUN), Dataset(list(NAMES), [], np.zeros((3, 2), np.float32), EVENTS))
    if (folder / "guided/embeddings.npz").exists():
        run = Run(folder, SED)
        run.model("guided")
        taught(run, "guided", {"train": Dataset(list(NAMES), [], np.zeros((3, 2), np.float32), EVENTS)})


# Texts of a run


def _make_clip_list(folder: Path) -> None:
    spans = (Span("bell", 0.5, 1.25), Span("knock", 0, 2))
    some = Clip(name="c.wav", path=Path("c.wav"), labels=frozenset(EVENTS), group="c", split="valid", spans=spans)
    write_clips(folder / "0/clips.jsonl", [*CLIPS, some])


def _read_clip_list(folder: Path) -> None:
    clips = read_clip_list(folder / "clips.jsonl", folder)
    for clip in clips:
        assert os.path.normpath(clip.path).startswith(f"{folder}{os.sep}"), "expected a path within the root"
    assert all(line.isprintable() for line in summary(clips, EVENTS).splitlines()), "expected lines to print"


def _read_log(folder: Path) -> None:
    for record in read_log(folder, 4):
        assert record["step"] <= 4
    for record in read_epochs(folder):
        record["epoch"] + record["epoch_loss"] + record["valid"]["auc"] + record["valid"]["eer"]


_LOG = "".join(
    json.dumps(record) + "\n"
    for record in (
        {"step": 1, "loss": 0.5, "grad_norm": 2.0},
        {"step": 2, "loss": 0.25, "grad_norm": 1.0},
        {"step": 2, "epoch": 1, "epoch_loss": 0.375, "valid": {"auc": 70.0, "eer": 30.0}},
        {"step": 3, "loss": 0.125, "grad_norm": 0.5},
    )
)


def _read_config(folder: Path) -> None:
    run = load_run(folder)
    assert run.shape and to_json(run.config)
    for name in run.names:
        assert (run.folder / name).parent == run.folder
        assert run.config.start(name) is None or name


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
    tagger.open_model = open_untried  # type: ignore[assignment]
    recording = folder / "a.wav"
    soundfile.write(recording, _noise(4000), 16_000)
    write_loudness(folder / "model.onnx", (1, 1000), [0.2, 0.5, 0.3])
    clip = Clip(name="a.wav", path=recording, labels=frozenset(), group="a")
    tagger.tagger_logits(folder / "tagger.toml", [clip], EVENTS, folder / "cache")


# Exported detectors, and the checksums that belong to them


def _detector(student: StudentConfig) -> Detector:
    return dataclasses.replace(random_detector(student, mels=8), clip_seconds=0.4)


def _make_exported(suffix: str, write: Callable[[Detector, Path], Any], folder: Path) -> None:
    for index, student in enumerate((PLAIN, FRONT, DEEP)):
        (folder / str(index)).mkdir(parents=True)
        write(_detector(student), folder / f"{index}/detector{suffix}")


def _read_exported(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        exported = open_exported(path)
        exported.clip_logits(_noise(round(exported.clip_seconds * exported.features.sample_rate)))


def _read_header(folder: Path) -> None:
    """Up to the compiler, which would take a second."""
    os.environ["CC"] = "false"
    for path in sorted(folder.iterdir()):
        try:
            c.compile_c(path)
        except InputError as error:
            if "false failed" not in str(error):
                raise


def _sealed_onnx(rng: random.Random, data: bytes) -> bytes:
    content = mutate.onnx(rng, data[: -len(deploy_onnx._checksum(b""))])
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
    return c._digest(rest).encode() + rest


TARGETS = (
    Target("recordings", functools.partial(_recordings, PCM), _read_recording),
    Target("compressed", functools.partial(_recordings, COMPRESSED), _read_recording),
    Target("manifest", _texts({"metadata.csv": _MANIFEST}), functools.partial(_read_source, "manifest")),
    Target("audioset", _texts(_AUDIOSET), functools.partial(_read_source, "audioset")),
    Target("esc50", _texts({"meta/esc50.csv": _ESC50}), functools.partial(_read_source, "esc50")),
    Target("desed", _texts(_DESED), functools.partial(_read_source, "desed")),
    Target("logits", _make_logits, _read_logits),
    Target("step logits", _make_steps, _read_steps),
    Target("features", _make_cache, _read_cache),
    Target("run arrays", _make_arrays, _read_arrays),
    Target("clip list", _make_clip_list, _read_clip_list),
    Target("log", _texts({"log.jsonl": _LOG}), _read_log),
    Target("config", _texts({"config.json": to_json(RUN)}, {"config.json": to_json(SED)}), _read_config),
    Target("tagger", _texts(_TAGGER, _PLAIN_TAGGER), _read_tagger),
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
    ),
    Target(
        "exported .h",
        functools.partial(
            _make_exported, ".h", lambda detector, path: path.write_text(c.to_c(detector))
        ),
        _read_header,
        ((".h", _sealed_header),),
    ),
    Target(
        "artefact",
        functools.partial(_make_exported, ".safetensors", artefact.save),
        _read_exported,
        ((".safetensors", lambda rng, data: mutated_artefact(rng, [data])),),
    ),
)
