"""A small student of the integer scheme, trained, exported in all forms, and compared code for code."""

import dataclasses
import json
import runpy
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from qkd_jax.audio.io import read_audio
from qkd_jax.config import InputError, QuantConfig, StudentConfig
from qkd_jax.data.dataset import load_split
from qkd_jax.deploy import artefact, c, reference
from qkd_jax.deploy.exported import open_exported, open_session
from qkd_jax.deploy.front_end import log_mel
from qkd_jax.deploy.jax_runtime import to_jax, to_steps
from qkd_jax.evaluation.operating import operating_points
from qkd_jax.train.export import export, student_detector
from qkd_jax.train.folder import load_run
from qkd_jax.train.run import train
from qkd_jax.train.score import score_run
from qkd_jax.train.score_file import _windows

ROOT = Path(__file__).parents[2]
FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "c": ".h", "litert": ".tflite"}

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler, cc, on PATH")


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    student = StudentConfig(convolutions=(4, 6), halvings=1, units=8, pooling="attention")
    integer = dataclasses.replace(student, quant=QuantConfig.integer(4), start="float")
    config = tiny_config(tmp_path_factory.mktemp("exports"), students={"float": student, "int": integer})
    return load_run(train(config))


@pytest.fixture(scope="module")
def detector(run):
    return student_detector(run, "int")


def command(name, *arguments):
    return runpy.run_path(str(ROOT / f"{name}.py"))["main"]([str(argument) for argument in arguments])


def test_training_and_every_runtime_compute_the_same_codes(run, detector, tmp_path):
    """What the training graph computes on validation recordings is what NumPy, JAX and ONNX Runtime do."""
    valid = load_split(run.config, run.clips, "valid", run.cache)
    features = np.stack([item[: run.config.frames] for item in valid.features])
    trained = jax.jit(run.model("int").apply)(run.best_variables("int"), features)
    codes = np.stack([reference.input_codes(detector, item) for item in features])
    traces = [reference.advance(detector, reference.start(detector), item)[1:] for item in codes]
    outputs, attention = map(np.stack, zip(*traces))
    assert len(np.unique(outputs)) > 100  # they say something

    in_jax = jax.jit(lambda codes: to_steps(detector, codes))(codes)
    np.testing.assert_array_equal(in_jax[0], outputs)
    np.testing.assert_array_equal(in_jax[1], attention)
    pooled = [reference.pooled("attention", *trace) for trace in traces]
    np.testing.assert_allclose(trained, pooled, rtol=0, atol=2e-6)
    np.testing.assert_allclose(jax.jit(to_jax(detector))(features), pooled, rtol=0, atol=2e-6)

    artefact.save(detector, tmp_path / "int.safetensors")
    loaded = artefact.load(tmp_path / "int.safetensors")
    assert dataclasses.replace(loaded, **_arrays(detector)) == detector
    np.testing.assert_array_equal(reference.advance(loaded, reference.start(loaded), codes[0])[1], outputs[0])


def _arrays(detector):
    """Arrays have no one truth value; they are compared by what they compute."""
    names = ("mean", "std", "front", "lstm", "output", "attention")
    return {name: getattr(detector, name) for name in names}


@needs_compiler
def test_c_computes_the_same_codes(detector, tmp_path):
    (tmp_path / "int.h").write_text(c.to_c(detector))
    runner = c.compile_c(tmp_path / "int.h")
    codes = np.random.default_rng(0).integers(-128, 128, (200, 8))
    _, outputs, attention = reference.advance(detector, reference.start(detector), codes)
    found = runner.advance(codes)
    np.testing.assert_array_equal(found[0], outputs)
    np.testing.assert_array_equal(found[1], attention)


@pytest.mark.parametrize("kind", ["safetensors", "onnx", pytest.param("c", marks=needs_compiler), "litert"])
def test_an_exported_file_gives_the_table_of_the_run(kind, run, capsys, tmp_path):
    if kind == "litert":
        pytest.importorskip("litert_converter", reason="pip install --no-deps litert-converter")
    command("export", run.folder / "int", "--format", kind)
    path = run.folder / "int" / f"int{FORMATS[kind]}"
    said = capsys.readouterr().out
    assert f"{path}: {path.stat().st_size:,} bytes" in said and "16 recordings" in said
    command("eval", path, "--json", tmp_path / "figures.json")
    found = json.loads((tmp_path / "figures.json").read_text())["models"][path.name]
    expected = score_run(run, only="int")["models"]["int"]["metrics"]
    assert found["bytes"] == path.stat().st_size
    for event, figures in expected.items():
        for key, value in figures.items():
            # By codes that front ends of other libraries may move, and LiteRT's own rounding.
            assert found["metrics"][event][key] == pytest.approx(value, abs=15 if kind == "litert" else 3)
    if kind == "onnx":
        assert (
            open_session(path.with_name("int-step.onnx")).get_modelmeta().custom_metadata_map["form"]
            == "step"
        )
        with pytest.raises(InputError, match="expected a model of whole clips"):
            open_exported(path.with_name("int-step.onnx"))
    assert not [other for other in path.parent.iterdir() if other.name.startswith(".")]


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
    monkeypatch.setattr("qkd_jax.deploy.exported.artefact.load", lambda path: wrong)
    with pytest.raises(
        InputError, match=r"int.safetensors: expected the reference's probabilities within 0.02"
    ):
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
    assert detector.detection.thresholds == points
    assert detector.detection.use == "eer"  # seconds of recordings can't tell false alarms an hour


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "no student 'none'; there are: float, int"),
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
    [short] = _windows(waveform[:1000], samples, run.config.features)
    np.testing.assert_array_equal(short, np.resize(waveform[:1000], samples))
