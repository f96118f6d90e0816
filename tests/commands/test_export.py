"""A small student of the integer-only scheme, trained, exported in every form, and compared code for code."""

import importlib.util
import json
import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from qkd_jax import export, score, train
from qkd_jax.audio.log_mel_numpy import log_mel
from qkd_jax.audio.reading import read_audio
from qkd_jax.commands import evaluate as eval_command
from qkd_jax.commands import export as export_command
from qkd_jax.commands.evaluate_file import _logits, _windows
from qkd_jax.commands.export import _recordings, student_detector
from qkd_jax.config import LSTMConfig, ManifestData, ModelConfig, QuantConfig
from qkd_jax.data.clips import targets, write_clips
from qkd_jax.data.dataset import load_split
from qkd_jax.data.logits import read_logits
from qkd_jax.detector import file as artefact
from qkd_jax.detector import reference
from qkd_jax.detector.codes import LOGIT_EXPONENT
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.evaluation.operating_points import operating_points
from qkd_jax.nn.integer_only import integer_linear
from qkd_jax.run_folder.run import Run
from qkd_jax.runtimes import c, litert, open_clip
from qkd_jax.runtimes import jax as jax_runtime
from qkd_jax.runtimes.jax import to_jax, to_steps
from qkd_jax.runtimes.onnx import load
from tests import onnx_codes
from tests.faults import refused
from tests.recordings import noise, record

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
    models = {}
    for name, network in STUDENTS.items():
        start = name.replace("int", "float")
        models[start] = ModelConfig(network=network)
        models[name] = ModelConfig(network=network.quantized(QuantConfig.integer(4)), start=start)
    return train(tiny_config(tmp_path_factory.mktemp("exports"), models=models))


@pytest.fixture(scope="module")
def detector(run):
    return student_detector(run, "int")


def command(module, *arguments):
    module.main([str(argument) for argument in arguments], "qkd-jax")


@pytest.mark.parametrize("name", STUDENTS)
def test_no_code_differs_between_training_and_any_form(name, run, tmp_path, monkeypatch):
    """On validation recordings the training graph, JAX, ONNX Runtime and C compute the reference's codes."""
    for kind in KINDS:
        export(run, name, format=kind, out=tmp_path / f"{name}{FORMATS[kind]}")
    loaded = artefact.load(tmp_path / f"{name}.safetensors")
    valid = load_split(run.config, run.clips, "valid", run.cache)
    features = np.stack([item[: run.config.frames] for item in valid.features])
    codes = np.stack([reference.input_codes(loaded, item) for item in features])
    traces = [reference.advance(loaded, reference.start(loaded), item)[1:] for item in codes]
    outputs, attention = (None if part[0] is None else np.stack(part) for part in zip(*traces))
    pooled = np.stack([reference.pooled(loaded.network.pooling, *trace) for trace in traces])
    assert len(np.unique(outputs)) > 100  # the outputs vary

    logits, *trained = training_codes(run, name, features)
    assert_allclose(logits, pooled, rtol=0, atol=2e-6)
    steps, last = trained
    assert_array_equal(steps, outputs)
    assert_array_equal(last, outputs[:, -1] if attention is None else attention)

    assert_allclose(jax.jit(to_jax(loaded))(features), pooled, rtol=0, atol=2e-6)
    assert_codes(jax.jit(partial(to_steps, loaded))(codes), outputs, attention)
    # to_steps holds weights in float32; without that, they are int8.
    monkeypatch.setattr(jax_runtime, "_in_float", partial(jax.tree.map, jnp.asarray))
    assert_codes(jax.jit(lambda codes: to_steps(loaded, codes))(codes), outputs, attention)

    forms = [tmp_path / f"{name}.onnx", tmp_path / f"{name}-step.onnx"]
    models = [onnx.load_from_string(load(path)) for path in forms]
    onnx_codes.assert_same(loaded, *models, np.concatenate(codes))  # with h and c, over all recordings

    if "c" in KINDS:
        runner = c.load(tmp_path / f"{name}.h")
        for item, trace in zip(codes, traces):
            assert_codes(runner.advance(item), *trace)
    if "litert" in KINDS:
        model, differences = litert.load(tmp_path / f"{name}.tflite"), []
        for item, expected in zip(features, pooled):
            scaled = (None if part is None else part * 2.0**LOGIT_EXPONENT for part in model.run(item))
            logits = reference.pooled(loaded.network.pooling, *scaled)
            differences.append(abs(probability(logits) - probability(expected)))
        assert np.mean(differences) < NEAR
    if missing := [MISSING[kind] for kind in FORMATS if kind not in KINDS]:
        pytest.skip(f"all other forms agree: {'; '.join(missing)}")


def training_codes(run, name, features):
    """The logits of the training graph, and the codes of its output layers before pooling."""

    @jax.jit
    def trained(variables, features):
        recorded = []

        def record(*arguments):
            recorded.append(integer_linear(*arguments))
            return recorded[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("qkd_jax.models.lstm_integer.integer_linear", record)
            return run.model(name).apply(variables, features), *recorded

    logits, *recorded = trained(run.best_variables(name), features)
    return logits, *(np.asarray(part) * 2.0**LOGIT_EXPONENT for part in recorded)


def assert_codes(codes, outputs, attention):
    assert_array_equal(codes[0], outputs)
    if attention is None:
        assert codes[1] is None
    else:
        assert_array_equal(codes[1], attention)


def probability(logits):
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("kind", FORMATS)
def test_an_exported_file_gives_the_table_of_the_run(kind, run, capsys, tmp_path):
    if kind not in KINDS:
        pytest.skip(MISSING[kind])
    command(export_command, run.folder / "int", "--format", kind)
    path = run.folder / f"int{FORMATS[kind]}"
    printed = capsys.readouterr().out
    assert f"{path}: {path.stat().st_size:,} bytes" in printed and "16 recordings" in printed
    command(eval_command, path, "--json", tmp_path / "figures.json")
    row = json.loads((tmp_path / "figures.json").read_text())["models"][path.name]
    assert row["bytes"] == path.stat().st_size
    assert not [other for other in path.parent.glob(".*") if other.name != ".lock"]

    clips = [clip for clip in run.clips if clip.split == "test"]
    events = run.config.data.events
    names = [clip.name for clip in clips]
    logits = expected = read_logits(run.model_folder("int") / "logits-test.npz", names, events)
    if kind != "safetensors":  # other front ends may change a code, and LiteRT rounds differently
        logits = _logits(open_clip(path), clips, None)
        difference = abs(probability(logits) - probability(expected)).mean()
        assert difference < (NEAR if kind == "litert" else 1e-3)
    expected = evaluate(targets(clips, events), logits, events)
    assert row["metrics"]["average"] == pytest.approx(expected["average"], abs=1e-6)
    for event, figures in expected["events"].items():
        assert row["metrics"]["events"][event] == pytest.approx(figures, abs=1e-6)
    if kind == "onnx":
        with refused("expected a model of whole clips"):
            open_clip(path.with_name("int-step.onnx"))


def test_a_file_of_other_recordings_or_elsewhere_is_scored_too(run, tmp_path, capsys):
    (tmp_path / "a" / "b").mkdir(parents=True)
    moved = export(run, "int", out=tmp_path / "a" / "b" / "moved.safetensors")
    capsys.readouterr()
    command(eval_command, moved, "--data.root", run.folder / "data", "--json", tmp_path / "there.json")
    there = json.loads((tmp_path / "there.json").read_text())["models"]["moved.safetensors"]["metrics"]
    expected = score(run, model="int")["models"]["int"]["metrics"]
    assert there["average"]["auc"] == pytest.approx(expected["average"]["auc"], abs=1e-9)


def test_a_damaged_export_is_not_kept(run, detector, monkeypatch):
    path = export(run.folder, "int")
    assert export(run, "int") == path
    before = path.read_bytes()
    wrong = replace(detector, output=detector.output._replace(bias=detector.output.bias + 1500))
    monkeypatch.setattr("qkd_jax.runtimes.numpy.load", lambda path: wrong)
    with refused(r"int.safetensors: expected a mean probability difference of at most .* from the reference"):
        export(run, "int")
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
    assert detector.event_config.use == "eer"  # a few seconds are too short for false alarms per hour


def test_faults_of_an_export_are_named(run, finished, tmp_path):
    students = r"\(int, int-last\)"
    for name in ("none", "float"):
        with refused(rf"expected a student in the integer-only scheme {students}, got '{name}'"):
            student_detector(run, name)
    with refused(rf"expected RUN/MODEL {students}, got a run"):
        command(export_command, run.folder)
    with refused(r"expected RUN/MODEL \(this run has no student in the integer-only"):
        command(export_command, finished)
    with refused(r"--out: expected a name ending in .onnx, got .*int.tflite"):
        export(run, "int", format="onnx", out=tmp_path / "int.tflite")
    (tmp_path / "x.txt").write_text("")
    with refused(r"x.txt: expected a detector in .safetensors, .onnx, .tflite or .h"):
        open_clip(tmp_path / "x.txt")


def test_a_recording_is_scored_as_its_windows(run, detector, tmp_path):
    """A file's figures come from the maximum over windows, by the front end in the file."""
    clip = run.clips[0]
    waveform = np.tile(read_audio(clip.path, 16_000), 3)
    samples = round(0.4 * 16_000)
    pieces = list(_windows(waveform, samples, run.config.features))
    frames = run.config.frames
    whole = log_mel(run.config.features, waveform)
    assert len(pieces) == -(-len(whole) // frames)
    for piece, start in zip(pieces, [*range(0, len(whole) - frames, frames), len(whole) - frames]):
        assert_array_equal(log_mel(run.config.features, piece), whole[start : start + frames])


@pytest.mark.parametrize("samples", [300, 1600, 3333, 6399])
def test_a_recording_shorter_than_a_window_is_tiled_like_its_features(samples, run):
    """Except for the frames across a seam."""
    features, frames = run.config.features, run.config.frames
    waveform = read_audio(run.clips[0].path, 16_000)[:samples]
    [piece] = _windows(waveform, 6400, features)
    alone = features.frames(samples)
    period = max(alone, 1) * features.hop_length
    assert_array_equal(piece, np.resize(waveform[:period], 6400))
    if alone:
        within = np.arange(frames) % alone * features.hop_length + features.win_length <= period
        tiled = np.resize(log_mel(features, waveform), (frames, features.n_mels))
        assert within.mean() > 0.7
        assert_array_equal(log_mel(features, piece)[within], tiled[within])


def test_an_export_is_compared_on_the_samples_of_each_part(tiny_config, tmp_path):
    samples = noise(16_000)
    whole = record(tmp_path, "a.wav", samples, split="valid")
    parts = [
        replace(whole, name=f"a.wav#t={start},1", file="a.wav", part=(start, 1.0)) for start in (0.0, 0.5)
    ]
    write_clips(tmp_path / "clips.jsonl", parts)
    data = ManifestData(root=str(tmp_path), clip_seconds=0.4)
    found = _recordings(Run(tmp_path, tiny_config(tmp_path, data=data)))
    assert_array_equal(found, [samples[:6400], samples[8000:14_400]])
