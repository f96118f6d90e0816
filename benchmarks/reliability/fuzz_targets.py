"""Readers of recordings, tables, arrays, checkpoints and texts of a run, and files for them."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from benchmarks.reliability.mutate import MUTATORS, Mutator
from qkd_jax import config
from qkd_jax.audio.stdin import stdin_blocks
from qkd_jax.data.clip_list import read_clips
from qkd_jax.data.clips import Annotation, Clip, read_clip_list, summary, with_splits, write_clips
from qkd_jax.data.dataset import Dataset
from qkd_jax.data.features import CachedFeatures, cached_features, recording_features
from qkd_jax.data.logits import StepLogits, read_logits, read_step_logits, write_logits, write_step_logits
from qkd_jax.errors import InputError, printable
from qkd_jax.run_folder import checkpoints
from qkd_jax.run_folder.folder import load_run
from qkd_jax.run_folder.log import read_epochs, read_log
from qkd_jax.run_folder.run import Run
from qkd_jax.run_folder.state import TrainState
from qkd_jax.training.teachers import embedding_targets, teacher_logits
from tests.audio.encoded import FORMATS, Trickle, encode


class Target(NamedTuple):
    """A reader: `make` fills folders below the one it is given, each with files that `read` can read.

    If reading ends the process, `guard`, which tries the files in another process, must refuse them.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    mutators: Mapping[str, Mutator] = MappingProxyType(MUTATORS)
    guard: Callable[[Path], Any] | None = None


FEATURES = config.FeatureConfig(n_mels=8)
EVENTS = ("bell", "knock")
NAMES = ("a.wav", "b/b.wav", "ü.wav")
PCM = """WAV PCM_16 16000 2, WAV PCM_24 44100 1, WAV FLOAT 16000 1, WAV DOUBLE 8000 1, WAV IMA_ADPCM 16000 1,
WAV MS_ADPCM 16000 1, WAV ULAW 8000 1, AIFF PCM_16 16000 1, AU PCM_16 16000 1, CAF ALAC_16 16000 1,
W64 PCM_16 16000 1, RF64 PCM_16 16000 1"""
COMPRESSED = """FLAC PCM_16 16000 2, FLAC PCM_24 44100 1, OGG VORBIS 16000 1, OGG OPUS 16000 2,
MP3 MPEG_LAYER_III 16000 1"""
"""Format, subtype, rate and channels of recordings."""
MANIFEST = "filename,labels,split,group\na.wav,bell;knock,train,1\nb/b.wav,,valid,2\nc.wav,knock,test,3\n"
EXCEL = (
    'sep=;\r\nFilename;Labels;Split;Group\r\na.wav;"bell;Knock";Train;1\r\nb\\ü.wav;;val;2\r\n'
    "c.wav ;knock;TEST;3\r\n;;;\r\n"
)
MANIFESTS = ({"metadata.csv": MANIFEST}, {"metadata.csv": EXCEL}, {"metadata.csv": EXCEL.encode("utf-16")})
AUDIOSET = {
    "class_labels_indices.csv": 'index,mid,display_name\n0,/m/01,Bell\n1,/m/02,"Knock, on wood"\n',
    "eval_segments.csv": '# Segments\nabcdefghijk, 0.0, 9, "/m/01,/m/02"\n-Yzabcdefgh, 3.0, 9, "/m/02"\n',
    "x/Yabcdefghijk_0.wav": "",
    "-Yzabcdefgh.flac": "",
}
ESC50 = (
    "filename,fold,target,category,esc10,src_file,take\n1.wav,1,0,dog,True,100,A\n2.wav,4,1,cat,False,200,A\n"
)
FOLDERS = {"dog/1.wav": "", "dog/a/2.flac": "", "other/1.wav": "", "dog/notes.txt": "x"}
SPLIT_FOLDERS = {"train/dog/1.wav": "", "Val/dog/a/2.flac": "", "test/other/1.wav": "", "1.wav": ""}
TIMED_LABELS = {
    "annotations.csv": 'filename,onset,offset,label,split\na.wav,.5,1,bell,train\na.wav,"1,5",2,knock,train\n'
    "b/c.wav,,,,valid\nd.wav,3,3,bell,test\n",
    "a.wav": "",
    "e.wav": "",
}
AUDACITY = {
    "a.wav": "",
    "a.txt": "0.5\t1.25\tbell\n\\\t100.0\t2000.0\n3.0\t3.0\tknock knock\n",
    "b/c.flac": "",
    "b/c.txt": "",
    "d.wav": "",
}
_SELECTIONS = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\t"
RAVEN = {
    "a.wav": "",
    "a.Table.1.selections.txt": f"{_SELECTIONS}Annotation\n1\tWaveform 1\t1\t.5\t1\t10\tbell\n"
    "1\tSpectrogram 1\t1\t.5\t1\t10\tbell\n",
    "b/c.wav": "",
    "all.txt": f"{_SELECTIONS}Begin File\tFile Offset (s)\tSpecies\n"
    "1\tWaveform 1\t1\t65\t66\t10\tc.wav\t5\tknock\n"
    "2\tWaveform 1\t1\t1\t2\t10\ta.wav\t1\tbell\n",
    "d.wav": "",
    "d.selections.txt": f"{_SELECTIONS}Annotation\n",
}
FSD50K = {
    "FSD50K.ground_truth/dev.csv": 'fname,labels,mids,split\n1,"Bark,Dog","/m/1,/m/2",train\n'
    "2,Bell,/m/3,val\n",
    "FSD50K.ground_truth/eval.csv": "fname,labels,mids\n3,Bell,/m/3\n",
}
DESED = {
    "train/audio/a.wav": "",
    "train/strong.tsv": "filename\tonset\toffset\tevent_label\na.wav\t.5\t1\tbell\na.wav\t1\t2\tknock\nc\n",
    "train/weak.tsv": "filename\tevent_labels\nb.wav\tbell,knock\nc.wav\n",
    "train/durations.tsv": "filename\tduration\na.wav\t10.0\nd.wav\t10.0\n",
    "valid/audio/a.wav": "",
    "valid/strong.tsv": "filename\tonset\toffset\tevent_label\na.wav\t0.5\t1.25\tbell\n",
}
LOG = """{"step": 1, "loss": 0.5, "grad_norm": 2.0}
{"step": 2, "loss": 0.25, "grad_norm": 1.0}
{"step": 2, "epoch": 1, "epoch_loss": 0.375, "valid": {"auc": 70.0, "eer": 30.0}}
{"step": 3, "loss": 0.125, "grad_norm": 0.5}
"""
CLIPS = tuple(
    Clip(name=name, root=Path(), labels=frozenset(EVENTS[:index]), group=name, split="train")
    for index, name in enumerate(NAMES)
)
_DATA: dict[str, Any] = {"root": "data", "events": EVENTS, "clip_seconds": 0.4}
_PLAIN = config.ModelConfig(network=config.LSTMConfig(hidden_size=4), teachers=("logits.npz",))
RUN = config.RunConfig(features=FEATURES, data=config.ManifestData(**_DATA), models={"plain": _PLAIN})
GUIDED = config.CRNNConfig(channels=(2,), pools=((2, 2),), hidden_size=2, layers=1)
_GUIDED = {
    "guided": config.ModelConfig(network=GUIDED, objective=config.EventObjective(embeddings="tagger.toml"))
}
_RECIPE = config.EventRecipe(strong=1, weak=0, unlabelled=0)
TIMED = config.RunConfig(features=FEATURES, data=config.DESEDData(**_DATA), recipe=_RECIPE, models=_GUIDED)


def noise(*shape: int) -> np.ndarray:
    """float32 noise with standard deviation 0.1, always the same."""
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def texts(*inputs: Mapping[str, str | bytes]) -> Callable[[Path], None]:
    """A function that makes these files."""

    def make(folder: Path) -> None:
        for index, files in enumerate(inputs):
            for name, text in files.items():
                path = folder / str(index) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def _recordings(kinds: str, folder: Path) -> None:
    for index, kind in enumerate(kinds.split(",")):
        form, subtype, rate, channels = kind.split()
        path = folder / str(index) / f"recording.{form.lower()}"
        path.parent.mkdir(parents=True)
        samples = noise(int(rate) // 8, int(channels))
        soundfile.write(path, samples, int(rate), format=form, subtype=subtype)


def _encoded(kinds: Iterable[str], folder: Path) -> None:
    for index, kind in enumerate(kinds):
        (folder / str(index)).mkdir(parents=True)
        encode(folder / str(index) / "recording", noise(6000), kind)


def _read_stdin(folder: Path) -> None:
    """Read each file as standard input, a few bytes at a time."""
    for path in folder.iterdir():
        content = path.read_bytes()
        list(stdin_blocks(Trickle(content, 1 + len(content) % 1000), 16_000))


def _read_recording(folder: Path) -> None:
    for path in folder.iterdir():
        recording_features(path, FEATURES)


def _read_source(source: Callable[..., config.AnyData], folder: Path) -> None:
    clips = read_clips(source(root=str(folder)))
    events = sorted(set().union(*(clip.labels for clip in clips)))
    clips = with_splits(clips, events)
    _check_clips(clips, events, folder)
    write_clips(folder / "clips.jsonl", clips)
    assert read_clip_list(folder / "clips.jsonl", folder) == clips


def _check_clips(clips: list[Clip], events: Any, folder: Path) -> None:
    lines = summary(clips, events).splitlines()
    assert all(line == printable(line) for line in lines), "expected printable lines"
    for clip in clips:
        assert os.path.normpath(clip.path).startswith(f"{folder}{os.sep}"), "expected a path within the root"


def _make_logits(folder: Path) -> None:
    write_logits(folder / "0/logits.npz", NAMES, EVENTS, noise(3, 2))
    np.savez(folder / "0/plain.npz", names=NAMES, events=EVENTS, logits=noise(3, 2))


def _read_logits(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        read_logits(path, NAMES[::2], EVENTS)


def _make_steps(folder: Path) -> None:
    logits = StepLogits(noise(3, 2), noise(3, 5, 2), abs(noise(2)), 4, 2)
    write_step_logits(folder / "0/steps.npz", NAMES, EVENTS, logits)


def _make_cache(folder: Path) -> None:
    (folder / "0").mkdir(parents=True)
    soundfile.write(folder / "0/a.wav", noise(4000), 16_000)
    np.save(folder / "0/features.npy", noise(23, 8))


def _read_cache(folder: Path) -> None:
    """Read features from the cache, under the name that they have there."""
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


def _make_arrays(folder: Path) -> None:
    run = Run(folder / "0", TIMED)
    run.embeddings_file("guided").parent.mkdir(parents=True)
    np.savez(run.folder / "norm.npz", mean=noise(8), std=1 + abs(noise(8)))
    logits = run.teacher_file("logits.npz")
    logits.parent.mkdir()
    np.save(logits, noise(3, 2))
    steps, rows = GUIDED.steps(TIMED.frames), noise(3, 5, 6).astype(np.float16)
    np.savez(run.embeddings_file("guided"), rows=rows, row_of_step=np.arange(steps) % 5, size=6)


def _read_arrays(folder: Path) -> None:
    clips, timed = Run(folder, RUN), Run(folder, TIMED)
    if (folder / "norm.npz").exists():
        clips.norm([])
    if clips.teacher_file("logits.npz").exists():
        train = Dataset(list(NAMES), [], np.zeros((3, 2), np.float32), EVENTS, np.ones(3, np.int8))
        teacher_logits(clips, "plain", train)
    if timed.embeddings_file("guided").exists():
        timed.model("guided")
        embedding_targets(timed, "guided", 3)


def _state(step: int) -> TrainState:
    params, norm = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(3)}, {"norm": {"mean": jnp.zeros(2)}}
    return TrainState(jnp.int32(step), params, average=None, variables=norm, opt_state=(jnp.zeros(3),))


def _make_checkpoints(folder: Path) -> None:
    with checkpoints.open_checkpoints(folder / "0/checkpoints") as manager:
        checkpoints.save(manager, _state(1), {"auc": 50.0, "eer": 30.0})


def _read_checkpoints(folder: Path) -> None:
    """Read them as the eval command does, then as the train command does, which sets a damaged one aside."""
    with contextlib.suppress(InputError):
        jax.block_until_ready(checkpoints.best_model(folder / "checkpoints", _state(0)))
    with checkpoints.open_checkpoints(folder / "checkpoints") as manager:
        state = checkpoints.restore_last(manager, _state(0))
        assert state is None or state.params["w"].shape == (2, 3)


def _make_clip_list(folder: Path) -> None:
    times = (Annotation("bell", 0.5, 1.25), Annotation("knock", 0, 2))
    part = dataclasses.replace(CLIPS[0], name="a.wav#t=0,1.5", file="a.wav", part=(0.0, 1.5))
    clips = [*CLIPS[:2], dataclasses.replace(CLIPS[2], annotations=times), part]
    write_clips(folder / "0/clips.jsonl", clips)


def _read_clip_list(folder: Path) -> None:
    _check_clips(read_clip_list(folder / "clips.jsonl", folder), EVENTS, folder)


def _read_log(folder: Path) -> None:
    for record in read_log(folder, 4):
        assert record["step"] <= 4
    for record in read_epochs(folder):
        record["epoch"] + record["epoch_loss"] + record["valid"]["auc"] + record["valid"]["eer"]


def _read_config(folder: Path) -> None:
    run = load_run(folder)
    assert run.shape and config.to_json(run.config)
    for name in run.names:
        assert run.model_folder(name).parent == run.folder / "models"


DATA = (
    Target("recordings", partial(_recordings, PCM), _read_recording),
    Target("compressed", partial(_recordings, COMPRESSED), _read_recording),
    Target("encoded", partial(_encoded, FORMATS), _read_recording),
    Target("standard input", partial(_encoded, sorted(FORMATS.keys() - {"m4a", "alac", "wv"})), _read_stdin),
    Target("standard input, plain", partial(_recordings, PCM), _read_stdin),
    Target("manifest", texts(*MANIFESTS), partial(_read_source, config.ManifestData)),
    Target("audioset", texts(AUDIOSET), partial(_read_source, config.AudioSetData)),
    Target("esc50", texts({"meta/esc50.csv": ESC50}), partial(_read_source, config.ESC50Data)),
    Target("folders", texts(FOLDERS, SPLIT_FOLDERS), partial(_read_source, config.FoldersData)),
    Target("timed", texts(TIMED_LABELS), partial(_read_source, config.TimedData)),
    Target("audacity", texts(AUDACITY), partial(_read_source, config.AudacityData)),
    Target("raven", texts(RAVEN), partial(_read_source, config.RavenData)),
    Target("fsd50k", texts(FSD50K), partial(_read_source, config.FSD50KData)),
    Target("desed", texts(DESED), partial(_read_source, config.DESEDData)),
    Target("logits", _make_logits, _read_logits),
    Target("step logits", _make_steps, lambda at: read_step_logits(at / "steps.npz", NAMES[::2], EVENTS)),
    Target("features", _make_cache, _read_cache),
    Target("run arrays", _make_arrays, _read_arrays),
    Target("checkpoints", _make_checkpoints, _read_checkpoints),
    Target("clip list", _make_clip_list, _read_clip_list),
    Target("log", texts({"log.jsonl": LOG}), _read_log),
    Target(
        "config",
        texts({"config.json": config.to_json(RUN)}, {"config.json": config.to_json(TIMED)}),
        _read_config,
    ),
)
