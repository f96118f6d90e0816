"""Everything that reads a file, and files for it."""

import contextlib
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from benchmarks.reliability import mutate_binary
from benchmarks.reliability.mutate import Mutator
from qkd_jax.config import (
    CRNNConfig,
    DataConfig,
    DistillConfig,
    FeatureConfig,
    LSTMConfig,
    ModelConfig,
    RunConfig,
    SedTrainConfig,
    to_json,
)
from qkd_jax.data.clip_list import read_clips
from qkd_jax.data.clips import Clip, Span, read_clip_list, summary, with_splits, write_clips
from qkd_jax.data.dataset import Dataset
from qkd_jax.data.features import CachedFeatures, cached_features, recording_features
from qkd_jax.data.logits import StepLogits, read_logits, read_step_logits, write_logits, write_step_logits
from qkd_jax.errors import InputError, printable
from qkd_jax.run_folder import checkpoints as checkpoint
from qkd_jax.run_folder.folder import Run, load_run
from qkd_jax.run_folder.log import read_epochs, read_log
from qkd_jax.run_folder.state import TrainState
from qkd_jax.training.sed_teachers import taught
from qkd_jax.training.teachers import foreign_logits


class Target(NamedTuple):
    """A reader: `make` fills folders below the one it is given, each with files that `read` can read.

    Of what ends a process, `guard` is called then, which tries it in a process of its own, and shall refuse.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    mutators: tuple[tuple[str, Mutator], ...] = mutate_binary.MUTATORS
    guard: Callable[[Path], Any] | None = None


FEATURES = FeatureConfig(n_mels=8)
EVENTS = ("bell", "knock")
NAMES = ("a.wav", "b/b.wav", "ü.wav")


def noise(*shape: int) -> np.ndarray:
    """float32 of deviation 0.1, always the same."""
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
        soundfile.write(path, noise(rate // 8, channels), rate, format=form, subtype=subtype)


def _read_recording(folder: Path) -> None:
    for path in folder.iterdir():
        recording_features(path, FEATURES)


# Tables


def texts(*inputs: dict[str, str]) -> Callable[[Path], None]:
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
    assert all(line == printable(line) for line in said), "expected lines that can be printed"
    for clip in clips:
        inside = os.path.normpath(clip.path)
        assert inside.startswith(f"{folder}{os.sep}"), "expected a path within the root"
    write_clips(folder / "clips.jsonl", clips)
    assert read_clip_list(folder / "clips.jsonl", folder) == clips


_MANIFEST = "filename,labels,split,group\na.wav,bell;knock,train,1\nb/b.wav,,valid,2\nc.wav,knock,test,3\n"
_AUDIOSET = {
    "class_labels_indices.csv": 'index,mid,display_name\n0,/m/01,Bell\n1,/m/02,"Knock, on wood"\n',
    "eval_segments.csv": '# Segments\nabcdefghijk, 0.0, 9, "/m/01,/m/02"\n-Yzabcdefgh, 3.0, 9, "/m/02"\n',
    "x/Yabcdefghijk_0.wav": "",
    "-Yzabcdefgh.flac": "",
}
_ESC50 = (
    "filename,fold,target,category,esc10,src_file,take\n1.wav,1,0,dog,True,100,A\n2.wav,4,1,cat,False,200,A\n"
)
_DESED = {
    "train/audio/a.wav": "",
    "train/strong.tsv": "filename\tonset\toffset\tevent_label\na.wav\t.5\t1\tbell\na.wav\t1\t2\tknock\nc\n",
    "train/weak.tsv": "filename\tevent_labels\nb.wav\tbell,knock\nc.wav\n",
    "train/durations.tsv": "filename\tduration\na.wav\t10.0\nd.wav\t10.0\n",
    "valid/audio/a.wav": "",
    "valid/strong.tsv": "filename\tonset\toffset\tevent_label\na.wav\t0.5\t1.25\tbell\n",
}


# Arrays of foreign teachers and of a run


def _make_logits(folder: Path) -> None:
    write_logits(folder / "0/logits.npz", NAMES, EVENTS, noise(3, 2))
    np.savez(folder / "0/plain.npz", names=NAMES, events=EVENTS, logits=noise(3, 2))


def _read_logits(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        read_logits(path, NAMES[::2], EVENTS)


def _make_steps(folder: Path) -> None:
    said = StepLogits(noise(3, 2), noise(3, 5, 2), abs(noise(2)), (4, 2))
    write_step_logits(folder / "0/steps.npz", NAMES, EVENTS, said)


def _read_steps(folder: Path) -> None:
    read_step_logits(folder / "steps.npz", NAMES[::2], EVENTS)


def _make_cache(folder: Path) -> None:
    (folder / "0").mkdir(parents=True)
    soundfile.write(folder / "0/a.wav", noise(4000), 16_000)
    os.utime(folder / "0/a.wav", (0, 0))
    np.save(folder / "0/features.npy", noise(23, 8))


def _read_cache(folder: Path) -> None:
    """Features where the cache has them, under the name that they have there."""
    recording, features = folder / "a.wav", folder / "features.npy"
    soundfile.write(recording, noise(4000), 16_000)
    os.utime(recording, (0, 0))
    clip = Clip(name="a.wav", root=recording.parent, labels=frozenset(), group="a")
    (entry,), _ = cached_features([clip], FEATURES, folder)
    entry.unlink()
    if features.exists():
        features.rename(entry)
    entries, bad = cached_features([clip], FEATURES, folder)
    assert not bad, bad
    (mapped,) = CachedFeatures(entries)
    Run(folder, RUN).norm([mapped])


CLIPS = tuple(
    Clip(name=name, root=Path(), labels=frozenset(EVENTS[:index]), group=name, split="train")
    for index, name in enumerate(NAMES)
)
RUN = RunConfig(
    features=FEATURES,
    data=DataConfig(root="data", events=EVENTS, clip_seconds=0.4),
    students={"plain": LSTMConfig(hidden_size=4)},
    distill=DistillConfig(teachers=("logits.npz",)),
)
SED = RunConfig(
    features=FEATURES,
    data=DataConfig(source="desed", root="data", events=EVENTS, clip_seconds=0.4),
    models={
        "guided": ModelConfig(
            network=CRNNConfig(channels=(2,), pools=((2, 2),), hidden_size=2, layers=1),
            embeddings="tagger.toml",
        )
    },
    train=SedTrainConfig(strong=1, weak=0, unlabelled=0),
)


def _make_arrays(folder: Path) -> None:
    (folder / "0/guided").mkdir(parents=True)
    np.savez(folder / "0/norm.npz", mean=noise(8), std=1 + abs(noise(8)))
    np.save(folder / "0/foreign.npy", noise(1, 3, 2))
    steps = SED.models["guided"].network.steps(SED.frames)
    rows = noise(3, 5, 6).astype(np.float16)
    np.savez(folder / "0/guided/embeddings.npz", rows=rows, row_of_step=np.arange(steps) % 5, size=6)


def _read_arrays(folder: Path) -> None:
    if (folder / "norm.npz").exists():
        Run(folder, RUN).norm([])
    if (folder / "foreign.npy").exists():
        foreign_logits(Run(folder, RUN), Dataset(list(NAMES), [], np.zeros((3, 2), np.float32), EVENTS))
    if (folder / "guided/embeddings.npz").exists():
        run = Run(folder, SED)
        run.model("guided")
        data: Any = {"train": Dataset(list(NAMES), [], np.zeros((3, 2), np.float32), EVENTS)}
        taught(run, "guided", data)


# Checkpoints


def _state(step: int) -> TrainState:
    return TrainState(
        step=jnp.int32(step),
        params={"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(3)},
        average=None,
        variables={"norm": {"mean": jnp.zeros(2)}},
        opt_state=(jnp.zeros(3),),
    )


def _make_checkpoints(folder: Path) -> None:
    with checkpoint.open_checkpoints(folder / "0/checkpoints") as manager:
        checkpoint.save(manager, _state(1), {"auc": 50.0, "eer": 30.0})


def _read_checkpoints(folder: Path) -> None:
    """As eval.py does, then as train.py does, which sets a damaged one aside."""
    jax.block_until_ready(_read_best(folder))
    with checkpoint.open_checkpoints(folder / "checkpoints") as manager:
        state = checkpoint.restore_last(manager, _state(0))
        assert state is None or state.params["w"].shape == (2, 3)


def _read_best(folder: Path) -> Any:
    with contextlib.suppress(InputError):
        return checkpoint.best_model(folder / "checkpoints", _state(0))


# Texts of a run


def _make_clip_list(folder: Path) -> None:
    spans = (Span("bell", 0.5, 1.25), Span("knock", 0, 2))
    some = Clip(name="c.wav", root=Path(), labels=frozenset(EVENTS), group="c", split="valid", spans=spans)
    write_clips(folder / "0/clips.jsonl", [*CLIPS, some])


def _read_clip_list(folder: Path) -> None:
    clips = read_clip_list(folder / "clips.jsonl", folder)
    for clip in clips:
        assert os.path.normpath(clip.path).startswith(f"{folder}{os.sep}"), "expected a path within the root"
    lines = summary(clips, EVENTS).splitlines()
    assert all(line == printable(line) for line in lines), "expected lines to print"


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


DATA = (
    Target("recordings", functools.partial(_recordings, PCM), _read_recording),
    Target("compressed", functools.partial(_recordings, COMPRESSED), _read_recording),
    Target("manifest", texts({"metadata.csv": _MANIFEST}), functools.partial(_read_source, "manifest")),
    Target("audioset", texts(_AUDIOSET), functools.partial(_read_source, "audioset")),
    Target("esc50", texts({"meta/esc50.csv": _ESC50}), functools.partial(_read_source, "esc50")),
    Target("desed", texts(_DESED), functools.partial(_read_source, "desed")),
    Target("logits", _make_logits, _read_logits),
    Target("step logits", _make_steps, _read_steps),
    Target("features", _make_cache, _read_cache),
    Target("run arrays", _make_arrays, _read_arrays),
    Target("checkpoints", _make_checkpoints, _read_checkpoints),
    Target("clip list", _make_clip_list, _read_clip_list),
    Target("log", texts({"log.jsonl": _LOG}), _read_log),
    Target("config", texts({"config.json": to_json(RUN)}, {"config.json": to_json(SED)}), _read_config),
)
