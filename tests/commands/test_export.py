"""A small student of the integer scheme, trained, exported in all forms, and compared code for code."""

import dataclasses
import importlib.util
import json
import runpy
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from qkd_jax.audio.log_mel_numpy import log_mel
from qkd_jax.audio.reading import read_audio
from qkd_jax.commands.evaluate import score_run
from qkd_jax.commands.evaluate_file import _logits, _windows
from qkd_jax.commands.export import export, student_detector
from qkd_jax.config import LSTMConfig, QuantConfig, TeacherConfig
from qkd_jax.data.clips import targets
from qkd_jax.data.dataset import load_split
from qkd_jax.data.logits import read_logits
from qkd_jax.detector import file as artefact
from qkd_jax.detector import reference
from qkd_jax.detector.codes import GRID
from qkd_jax.errors import InputError
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.evaluation.operating_points import operating_points
from qkd_jax.nn.integer_only import integer_linear
from qkd_jax.run_folder.folder import load_run
from qkd_jax.runtimes import jax as jax_runtime
from qkd_jax.runtimes import litert
from qkd_jax.runtimes.c_run import compile_c
from qkd_jax.runtimes.exported import open_exported, open_session
from qkd_jax.runtimes.jax import to_jax, to_steps
from qkd_jax.runtimes.onnx import load
from qkd_jax.training.run import train
from tests import onnx_codes

ROOT = Path(__file__).parents[2]
FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "c": ".h", "litert": ".tflite"}

MISSING = {"c": "no C compiler, cc, on PATH", "litert": "pip install --no-deps litert-converter"}
HERE = {"c": shutil.which("cc"), "litert": importlib.util.find_spec("litert_converter")}
NEAR = 0.002  # LiteRT's probabilities of these students, which vary by hundredths; export allows 0.02
KINDS = [kind for kind in FORMATS if HERE.get(kind, True)]


STUDENTS = {
    "int": LSTMConfig(convolutions=(4, 6), time_strides=1, hidden_size=8, pooling="attention"),
    "int-last": LSTMConfig(hidden_size=8),
}


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    students = {}
    for name, student in STUDENTS.items():
        start = name.replace("int", "float")
        students[start] = student
        students[name] = dataclasses.replace(student, quant=QuantConfig.integer(4), start=start)
    teacher = TeacherConfig(blocks=(1,), growth=4, stem=4)
    folder = tmp_path_factory.mktemp("exports")
    return load_run(train(tiny_config(folder, students=students, teacher=teacher)))


@pytest.fixture(scope="module")
def detector(run):
    return student_detector(run, "int")


def command(name, *arguments):
    return runpy.run_path(str(ROOT / f"{name}.py"))["main"]([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", STUDENTS)
def test_no_code_differs_between_training_and_any_form(name, run, tmp_path, monkeypatch):
    """Of validation recordings the training graph, JAX, ONNX Runtime and C compute the reference's codes."""
    for kind in KINDS:
        export(run, name, kind, tmp_path / f"{name}{FORMATS[kind]}")
    loaded = artefact.load(tmp_path / f"{name}.safetensors")
    valid = load_split(run.config, run.clips, "valid", run.cache)
    features = np.stack([item[: run.config.frames] for item in valid.features])
    codes = np.stack([reference.input_codes(loaded, item) for item in features])
    traces = [reference.advance(loaded, reference.start(loaded), item)[1:] for item in codes]
    outputs, attention = (None if part[0] is None else np.stack(part) for part in zip(*traces))
    pooled = np.stack([reference.pooled(loaded.network.pooling, *trace) for trace in traces])
    assert len(np.unique(outputs)) > 100  # they say something

    logits, *trained = training_codes(run, name, features)
    np.testing.assert_allclose(logits, pooled, rtol=0, atol=2e-6)
    frames, also = trained
    np.testing.assert_array_equal(frames, outputs)
    np.testing.assert_array_equal(also, outputs[:, -1] if attention is None else attention)

    np.testing.assert_allclose(jax.jit(to_jax(loaded))(features), pooled, rtol=0, atol=2e-6)
    assert_codes(jax.jit(partial(to_steps, loaded))(codes), outputs, attention)
    # to_steps holds weights in float32; without that they are int8.
    monkeypatch.setattr(jax_runtime, "_in_float", partial(jax.tree.map, jnp.asarray))
    assert_codes(jax.jit(lambda codes: to_steps(loaded, codes))(codes), outputs, attention)

    forms = [tmp_path / f"{name}.onnx", tmp_path / f"{name}-step.onnx"]
    models = [onnx.load_from_string(load(path)) for path in forms]
    onnx_codes.assert_same(loaded, *models, np.concatenate(codes))  # h and c too, carried on and on

    if "c" in KINDS:
        runner = compile_c(tmp_path / f"{name}.h")
        for item, trace in zip(codes, traces):
            assert_codes(runner.advance(item), *trace)
    if "litert" in KINDS:
        model, apart = litert.load(tmp_path / f"{name}.tflite"), []
        for item, expected in zip(features, pooled):
            said = (None if part is None else part * 2.0**GRID for part in model.run(item))
            found = reference.pooled(loaded.network.pooling, *said)
            apart.append(abs(probability(found) - probability(expected)))
        assert np.mean(apart) < NEAR
    if missing := [MISSING[kind] for kind in FORMATS if kind not in KINDS]:
        pytest.skip(f"all other forms agree: {'; '.join(missing)}")


def training_codes(run, name, features):
    """The logits of the training graph, and what its output layers say before pooling, on the grid."""

    @jax.jit
    def trained(variables, features):
        said = []

        def recorded(*arguments):
            said.append(integer_linear(*arguments))
            return said[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("qkd_jax.models.lstm_integer.integer_linear", recorded)
            return run.model(name).apply(variables, features), *said

    logits, *said = trained(run.best_variables(name), features)
    return logits, *(np.asarray(part) * 2.0**GRID for part in said)


def assert_codes(found, outputs, attention):
    np.testing.assert_array_equal(found[0], outputs)
    if attention is None:
        assert found[1] is None
    else:
        np.testing.assert_array_equal(found[1], attention)


def probability(logits):
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("kind", FORMATS)
def test_an_exported_file_gives_the_table_of_the_run(kind, run, capsys, tmp_path):
    if kind not in KINDS:
        pytest.skip(MISSING[kind])
    command("export", run.folder / "int", "--format", kind)
    path = run.folder / "int" / f"int{FORMATS[kind]}"
    said = capsys.readouterr().out
    assert f"{path}: {path.stat().st_size:,} bytes" in said and "16 recordings" in said
    command("eval", path, "--json", tmp_path / "figures.json")
    found = json.loads((tmp_path / "figures.json").read_text())["models"][path.name]
    assert found["bytes"] == path.stat().st_size
    assert not [other for other in path.parent.iterdir() if other.name.startswith(".")]

    clips = [clip for clip in run.clips if clip.split == "test"]
    events = run.config.data.events
    names = [clip.name for clip in clips]
    logits = expected = read_logits(run.folder / "int" / "logits-test.npz", names, events)
    if kind != "safetensors":  # front ends of their own may move a code, LiteRT rounds otherwise too
        logits = _logits(open_exported(path), clips)
        apart = abs(probability(logits) - probability(expected)).mean()
        assert apart < (NEAR if kind == "litert" else 1e-3)
    for event, figures in evaluate(targets(clips, events), logits, events).items():
        assert found["metrics"][event] == pytest.approx(figures, abs=1e-6)
    if kind == "onnx":
        session = open_session(path.with_name("int-step.onnx"))
        assert session.get_modelmeta().custom_metadata_map["form"] == "step"
        with pytest.raises(InputError, match="expected a model of whole clips"):
            open_exported(path.with_name("int-step.onnx"))


def test_a_file_of_other_recordings_or_elsewhere_is_scored_too(run, tmp_path, capsys):
    (tmp_path / "a" / "b").mkdir(parents=True)
    moved = export(run, "int", "safetensors", tmp_path / "a" / "b" / "moved.safetensors")
    capsys.readouterr()
    command("eval", moved, "--data.root", run.folder / "data", "--json", tmp_path / "there.json")
    there = json.loads((tmp_path / "there.json").read_text())["models"]["moved.safetensors"]["metrics"]
    expected = score_run(run, only="int")["models"]["int"]["metrics"]
    assert there["average"]["auc"] == pytest.approx(expected["average"]["auc"], abs=1e-9)


def test_a_damaged_export_is_not_kept(run, detector, monkeypatch):
    path = run.folder / "int" / "int.safetensors"
    export(run, "int", "safetensors")
    before = path.read_bytes()
    output = detector.output._replace(bias=detector.output.bias + 1500)
    wrong = dataclasses.replace(detector, output=output)
    monkeypatch.setattr("qkd_jax.runtimes.exported.artefact.load", lambda path: wrong)
    with pytest.raises(InputError, match=r"int.safetensors: expected the reference's probabilities within"):
        export(run, "int", "safetensors")
    assert path.read_bytes() == before


def test_thresholds_are_those_of_the_validation_recordings(run, detector):
    valid = load_split(run.config, run.clips, "valid", run.cache)
    peaks = []
    for item in valid.features:
        codes = reference.input_codes(detector, item[: run.config.frames])
        peaks.append(reference.advance(detector, reference.start(detector), codes)[1].max(axis=0) / 2**9)
    seconds = sum(map(len, valid.features)) * 0.01
    points = operating_points(valid.targets, np.array(peaks), valid.events, seconds / 3600)
    assert detector.event_config.thresholds == points
    assert detector.event_config.use == "eer"  # seconds of recordings can't tell false alarms an hour


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "no LSTM student 'none'; there are: float, int, float-last, int-last"),
        ("float", "expected a student of the integer scheme, found one of the paper's"),
    ],
)
def test_what_is_no_detector(name, message, run):
    with pytest.raises(InputError, match=message):
        student_detector(run, name)


def test_a_file_of_another_kind_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"out: expected a file in .onnx for onnx, got .*int.tflite"):
        export(run, "int", "onnx", tmp_path / "int.tflite")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(InputError, match=r"x.txt: expected a detector in .safetensors, .onnx, .tflite or .h"):
        open_exported(tmp_path / "x.txt")


def test_a_recording_is_scored_as_its_windows(run, detector, tmp_path):
    """A file's figures are those of the maximum over windows, by the front end that it carries."""
    clip = run.clips[0]
    waveform = np.tile(read_audio(clip.path, 16_000), 3)
    samples = round(0.4 * 16_000)
    pieces = list(_windows(waveform, samples, run.config.features))
    frames = run.config.frames
    whole = log_mel(run.config.features, waveform)
    assert len(pieces) == -(-len(whole) // frames)
    for piece, start in zip(pieces, [*range(0, len(whole) - frames, frames), len(whole) - frames]):
        np.testing.assert_array_equal(log_mel(run.config.features, piece), whole[start : start + frames])


@pytest.mark.parametrize("samples", [300, 1600, 3333, 6399])
def test_what_is_shorter_than_a_window_is_tiled_as_its_features_are(samples, run):
    """All but the frames across a seam."""
    features, frames = run.config.features, run.config.frames
    waveform = read_audio(run.clips[0].path, 16_000)[:samples]
    [piece] = _windows(waveform, 6400, features)
    alone = features.frames(samples)
    period = max(alone, 1) * features.hop_length
    np.testing.assert_array_equal(piece, np.resize(waveform[:period], 6400))
    if alone:
        within = np.arange(frames) % alone * features.hop_length + features.win_length <= period
        tiled = np.resize(log_mel(features, waveform), (frames, features.n_mels))
        assert within.mean() > 0.7
        np.testing.assert_array_equal(log_mel(features, piece)[within], tiled[within])
