"""A pretrained tagger as a teacher: its windows and scores, the cache, and errors."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from onnx import load, numpy_helper, save

from qkd_jax.audio.reading import read_audio
from qkd_jax.config import ManifestData
from qkd_jax.data.sources.manifest import read_manifest
from qkd_jax.distill import tagger as tagger_module
from qkd_jax.distill.tagger import run_tagger, tagger_logits
from tests.faults import refused, refused_in_one_line
from tests.recordings import noise, record
from tests.waveform_models import Graph, write_loudness, write_spectrum

SHARED = Path(os.environ.get("QKD_SHARED", Path(__file__).parents[3] / "shared"))
EVENTS = ("dog", "siren")
FINE = "window_seconds = 0.125\nhop_seconds = 0.003125"


def describe(folder, text="", *, file="model.onnx", names=("Dog", "Bark", "Siren"), events=None):
    (folder / "names.txt").write_text("\n".join(names) + "\n")
    events = events or '[events]\ndog = ["Dog", "Bark"]\nsiren = ["Siren"]\n'
    path = folder / "tagger.toml"
    path.write_text(f'file = "{file}"\nclasses = "names.txt"\n{text}\n{events}')
    return path


def logits_of(path, clips, events=EVENTS):
    return tagger_logits(path, clips, events, path.parent / "cache")


def logit(p):
    return np.log(p / (1 - p))


@pytest.fixture
def clip(tmp_path):
    return record(tmp_path, "a.wav", noise(1000))


LOUDEST = np.abs(noise(1000)).max()
GAINS = [0.2, 0.5, 0.9]
SINGLE = '[events]\ndog = ["Dog"]\nsiren = ["Siren"]'


@pytest.mark.parametrize("file", ["model.onnx", "model.tflite"])
def test_the_score_of_an_event_is_the_maximum_over_classes_and_windows(tmp_path, file):
    write_loudness(tmp_path / file, (1, 1000), GAINS)
    waveforms = [noise(n, n) for n in (1000, 4321, 30_000)]
    clips = [record(tmp_path, f"{index}.wav", item) for index, item in enumerate(waveforms)]
    expected = np.outer([np.abs(item).max() for item in waveforms], [0.5, 0.9])
    logits = logits_of(describe(tmp_path, file=file), clips)
    assert_allclose(logits, logit(expected), rtol=1e-5)
    assert logits.dtype == np.float32
    assert_allclose(logits_of(describe(tmp_path, 'output = "logits"', file=file), clips), expected, rtol=1e-6)


@pytest.mark.parametrize("file", ["model.onnx", "model.tflite"])
@pytest.mark.parametrize(
    ("shape", "text", "windows"),
    [
        ((1, 1000), "", [(0, 1000), (500, 1500), (1000, 2000), (1234, 2234)]),
        ((1000,), "hop_seconds = 0.0625", [(0, 1000), (1000, 2000), (1234, 2234)]),
        (("batch", "samples"), "window_seconds = 0.125", [(0, 2000), (234, 2234)]),
        (("samples",), FINE, [*((s, s + 2000) for s in range(0, 201, 50)), (234, 2234)]),
        ((1, "samples"), "", [(0, 2234)]),
    ],
)  # fmt: skip
def test_windows_cover_the_recording(tmp_path, monkeypatch, shape, text, windows, file):
    write_loudness(tmp_path / file, shape, [0.1, 0.1, 0.1])
    waveform, inputs = noise(2234), []
    clip = record(tmp_path, "a.wav", waveform)
    open_model = tagger_module.open_model

    def open_recorded(path, layer=None):
        samples, run = open_model(path, layer)
        return samples, lambda window: inputs.append(window.copy()) or run(window)

    monkeypatch.setattr(tagger_module, "open_model", open_recorded)
    logits = logits_of(describe(tmp_path, text, file=file), [clip])
    assert_allclose(logits, logit(0.1 * np.abs(waveform).max()), rtol=1e-5)
    inputs = inputs[1:]  # the first is noise, which shows the shapes of the outputs
    assert len(inputs) == len(windows)
    for window, (start, end) in zip(inputs, windows):
        assert_array_equal(window, waveform[start:end])


def test_short_recordings_are_tiled_and_others_resampled(tmp_path):
    write_loudness(tmp_path / "model.onnx", (1, 8000), [0.9, 0.9, 0.9])
    short = record(tmp_path, "short.wav", noise(700))
    tone = 0.6 * np.sin(2 * np.pi * 440 * np.arange(88_200) / 44_100)
    tone[-100:] *= 1.3  # the last window alone has it
    other = record(tmp_path, "tone.wav", tone, 44_100)
    logits = logits_of(describe(tmp_path, "sample_rate = 8000\nhop_seconds = 1.0"), [short, other])
    expected = [np.abs(read_audio(clip.path, 8000)).max() for clip in (short, other)]
    assert_allclose(logits[:, 0], logit(0.9 * np.array(expected)), rtol=1e-4)


def test_probabilities_are_clipped_and_other_values_refused(tmp_path):
    waveform = noise(1000) / np.abs(noise(1000)).max()
    clip = record(tmp_path, "a.wav", waveform)
    write_loudness(tmp_path / "model.onnx", (1, 1000), [0.0, 0.0, 1.0])
    assert_allclose(logits_of(describe(tmp_path), [clip]), [[logit(1e-3), logit(1 - 1e-3)]], rtol=1e-4)
    write_loudness(tmp_path / "model.onnx", (1, 1000), [0.0, -2.0, 9.0])
    with refused(r"expected probabilities, found -2 to 9; if these are logits, output"):
        logits_of(describe(tmp_path), [clip])


def test_names_of_classes_may_be_padded_repeated_or_missing(tmp_path, clip):
    write_loudness(tmp_path / "model.onnx", (1, 1000), GAINS)
    path = describe(tmp_path, events=SINGLE)
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfDog \r\nSiren\r\nDog\r\n\r\n")
    assert_allclose(logits_of(path, [clip]), [[logit(0.9 * LOUDEST), logit(0.5 * LOUDEST)]], rtol=1e-5)
    # Events without classes have NaN.
    path = describe(tmp_path, events='[events]\nsiren = ["Bark"]\n')
    logits = logits_of(path, [clip], ("dog", "siren", "bell"))
    assert_allclose(logits, [[np.nan, logit(0.5 * LOUDEST), np.nan]], rtol=1e-5)


def test_scores_of_clips_are_preferred_to_scores_of_frames(tmp_path):
    graph = Graph()
    by_frame = graph.add("Mul", graph.add("Reshape", "waveform", np.array([500, 2])), np.float32(0.5))
    by_clip = graph.add("ReduceMean", by_frame, np.array([0]), keepdims=1)
    graph.write(tmp_path / "model.onnx", (1, 1000), {by_frame: (500, 2), by_clip: (1, 2)})
    waveform = np.abs(noise(1000))
    path = describe(tmp_path, names=("Dog", "Siren"), events=SINGLE)
    logits = logits_of(path, [record(tmp_path, "a.wav", waveform)])
    assert_allclose(logits[0], logit(0.5 * waveform.reshape(-1, 2).mean(axis=0)), rtol=1e-4)


def test_weights_in_a_separate_file_are_part_of_the_cache_key(tmp_path, clip):
    path = write_loudness(tmp_path / "model.onnx", (1, 1000), GAINS)
    model, external = load(path), {"save_as_external_data": True, "location": "model.onnx.data"}
    for gain in (0.4, 0.8):
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([[gain] * 3]), "c0"))
        save(model, path, size_threshold=0, **external)
        assert logits_of(describe(tmp_path), [clip])[0, 0] == pytest.approx(logit(gain * LOUDEST), rel=1e-4)


def test_scores_of_each_recording_are_computed_once(tmp_path, monkeypatch):
    write_loudness(tmp_path / "model.onnx", (1, 1000), GAINS)
    clips = [record(tmp_path, f"{index}.wav", noise(1500, index)) for index in range(5)]
    read = []
    monkeypatch.setattr(
        tagger_module, "read_audio", lambda *of, **channel: read.append(of[0]) or read_audio(*of)
    )
    first = logits_of(describe(tmp_path), clips[:3])
    logits = logits_of(describe(tmp_path), clips)
    assert_array_equal(logits[:3], first)
    # Another mapping to events and another meaning of the output use the same scores.
    other = logits_of(describe(tmp_path, 'output = "logits"', events='[events]\ndog = ["Siren"]\n'), clips)
    assert_allclose(logit(other[:, 0]), logits[:, 1], rtol=1e-5)
    assert sorted(read) == [clip.path for clip in clips]
    # Another hop and another model don't.
    logits_of(describe(tmp_path, "hop_seconds = 0.01"), clips)
    write_loudness(tmp_path / "model.onnx", (1, 1000), [0.2, 0.5, 0.8])
    assert (logits_of(describe(tmp_path), clips)[:, 1] < logits[:, 1]).all()
    assert len(read) == 15


def test_yamnet_in_litert_detects_dogs_babies_and_guns(tmp_path):
    model, data = SHARED / "models" / "yamnet_tfhub_classification.tflite", SHARED / "data" / "aed-real"
    if not (model.is_file() and data.is_dir()):
        pytest.skip(f"no YAMNet and recordings in {SHARED} (QKD_SHARED says where)")
    from sklearn.metrics import roc_auc_score

    clips = [clip for clip in read_manifest(ManifestData(root=str(data))) if clip.split == "valid"][::4]
    classes = {"dog": "Dog", "baby_cry": "Baby cry, infant cry", "gunshot": "Gunshot, gunfire"}
    events = "\n".join(f'{event} = ["{name}"]' for event, name in classes.items())
    path = tmp_path / "yamnet.toml"
    names = model.parent / "yamnet_class_map.csv"
    path.write_text(f'file = "{model}"\nclasses = "{names}"\n[events]\n{events}\n')
    logits = logits_of(path, clips, tuple(classes))
    for event, column in zip(classes, logits.T):
        assert roc_auc_score([event in clip.labels for clip in clips], column) > 0.95


@pytest.mark.parametrize(
    ("shape", "text", "events", "error"),
    [
        ((1, 1000), "hop = 1", None, r"tagger\.toml: hop: .*"),
        ((1, 1000), "sample_rate = 0", None, r"sample_rate: expected at least 1, got 0"),
        ((1, 1000), "sample_rate", None, r"tagger\.toml: expected a tagger's settings in TOML"),
        ((1, 1000), "when = 2026-01-01", None, r"tagger\.toml: expected a tagger's settings in TOML"),
        ((1, 1000), "", '[events]\ndog = ["dog"]', r"events\.dog: .* got 'dog', maybe 'Dog'"),
        ((1, 1000), "", '[events]\ncat = ["Dog"]', r"events: expected some of dog, siren, got cat"),
        ((1, 1000), "", '[events]\ncat = ["Dog"]\ndog = ["Dog"]', None),
        ((1, 1000), "", "[events]", r"tagger\.toml: events: "),
        ((1, 1000), "window_seconds = 1.0", None, r"window_seconds: .*takes 1000 samples, got 16000"),
        ((1, "n"), "window_seconds = 1e-9", None, r"window_seconds: expected 1 to \d+ samples, got 0"),
        ((1, "n"), "window_seconds = 86400.0", None, r"window_seconds: expected 1 to \d+ samples, got 13824"),
        ((1, "n"), "window_seconds = 1e300", None, r"window_seconds: expected at most 86400"),
        ((1, "n"), "hop_seconds = 1e300", None, r"hop_seconds: expected at most 86400"),
        ((1, "n"), f"sample_rate = {10**30}", None, r"sample_rate: expected at most 1048576"),
        ((1, "n"), "a." * 50_000, None, r"expected .*TOML: at most 1048576 characters, 2000 of them"),
        ((1, "n"), "x = " + "[" * 10_000, None, r"tagger\.toml: expected a tagger's settings in TOML"),
        ((1, "n"), 'layer = "a\\u0000\\u001b[2J"\nx = 1', None, r"tagger\.toml: x: "),
        ((1, 1, 1, 1000), "", None, None),
        ((2, 1000), "", None, r"one float32 waveform, .* found inputs .*float.* \[2, 1000\]"),
    ],
)  # fmt: skip
def test_errors_of_the_description_are_named(tmp_path, clip, shape, text, events, error):
    write_loudness(tmp_path / "model.onnx", shape, GAINS)
    path = describe(tmp_path, text, events=events)
    with refused_in_one_line(error) if error else contextlib.nullcontext():
        logits_of(path, [clip])


def test_errors_of_the_files_are_named(tmp_path, clip):
    for file, error in [
        ("gone.onnx", r"file: expected a model at .*gone\.onnx, found none"),
        ("x" * 5000 + ".onnx", r"file: expected a model at .*x\.onnx, found none"),
        ("a\\u0000.onnx", r"file: expected a model at .*a\?\.onnx, found none"),
        ("model.h5", r"file: expected a model in \.onnx or \.tflite, got .*model\.h5"),
        ("bad.onnx", r"bad\.onnx: expected a model for ONNX Runtime: "),
        ("bad.tflite", r"bad\.tflite: expected a model for LiteRT: "),
    ]:
        (tmp_path / file).write_bytes(b"no such model") if file.startswith("bad") else None
        with refused(error):
            logits_of(describe(tmp_path, file=file), [clip])
    write_loudness(tmp_path / "model.onnx", (1, 1000), GAINS)
    with refused(r"names\.txt: 2 class names; .*expected an output of that size.*\(1, 3\)"):
        logits_of(describe(tmp_path, names=["Dog", "Bark"], events='[events]\ndog = ["Dog"]'), [clip])
    path = describe(tmp_path)
    (tmp_path / "names.txt").unlink()
    with refused(r"names\.txt: expected one class name per line"):
        logits_of(path, [clip])
    with refused(r"tagger\.toml: expected a tagger's settings in TOML"):
        logits_of(tmp_path / "none" / "tagger.toml", [clip])


def test_a_recording_with_scores_that_are_not_finite_is_named(tmp_path, clip):
    graph = Graph()
    total = graph.add("ReduceSum", graph.add("Log", "waveform"), keepdims=0)
    scores = graph.add("Mul", np.float32([[1, 1, 1]]), total)
    graph.write(tmp_path / "model.onnx", (1, 1000), {scores: (1, 3)})
    with refused(r"model\.onnx: expected finite scores of .*a\.wav, found NaN or infinity"):
        logits_of(describe(tmp_path), [clip])


def test_a_recording_on_which_the_model_fails_is_named(tmp_path, tried):
    """After the trial, in which a model of any length may fail on the length that is tried."""
    graph = Graph()
    parts = graph.add("Reshape", "waveform", np.array([-1, 3, 1000]))
    scores = graph.add("ReduceMax", parts, np.array([0, 2]), keepdims=0)
    graph.write(tmp_path / "model.onnx", (1, "samples"), {scores: (3,)})
    clips = [record(tmp_path, f"{samples}.wav", noise(samples), 3000) for samples in (6000, 4000)]
    with refused(r"1 of 2 [^\n]*\n.*model\.onnx: failed on 4000 samples: \[ONNX"):
        logits_of(describe(tmp_path, 'sample_rate = 3000\noutput = "logits"'), clips)


def test_a_missing_runtime_is_named(tmp_path, monkeypatch):
    from qkd_jax.distill import waveform_model

    def missing(name):
        raise ImportError(name)

    write_loudness(tmp_path / "model.onnx", (1, 1000), GAINS)
    monkeypatch.setattr("importlib.import_module", missing)
    with refused(r"needs onnxruntime: pip install 'qkd_jax\[taggers\]'"):
        waveform_model.open_model(tmp_path / "model.onnx")


def test_a_part_of_a_recording_has_the_windows_whose_centres_are_in_it(tmp_path):
    """Windows of 1000 samples every 500, of a recording whose loudness rises; parts of 2000 samples."""
    write_loudness(tmp_path / "model.onnx", (1, 1000), [0.9, 0.9, 0.9])
    waveform = np.linspace(0.1, 0.8, 8000).astype(np.float32)
    whole = record(tmp_path, "a.wav", waveform)
    times = [(0.0, 0.125), (0.125, 0.25), (0.375, 0.5), (0.26, 0.27)]
    parts = [replace(whole, name=f"a.wav#t={each}", file="a.wav", part=each) for each in times]
    ends = [2000, 4000, 8000, 4500]  # of the last window; the last part, without a centre, has the nearest
    logits = logits_of(describe(tmp_path), [*parts, whole])
    expected = [0.9 * waveform[end - 1] for end in [*ends, 8000]]
    assert_allclose(logits[:, 0], logit(np.array(expected)), rtol=1e-4)


def test_parts_of_recordings_need_windows(tmp_path):
    write_loudness(tmp_path / "model.onnx", (1, "samples"), [0.1, 0.1, 0.1])
    whole = record(tmp_path, "a.wav", noise(8000))
    part = replace(whole, name="a.wav#t=0,0.1", file="a.wav", part=(0.0, 0.1))
    with refused(r"tagger\.toml: window_seconds: expected a length, since recordings are cut into clips"):
        logits_of(describe(tmp_path), [part])


# Outputs that heads read.


def run_on(folder, text, clips):
    path = folder / "tagger.toml"
    path.write_text(text)
    return run_tagger(path, clips, folder / "cache")


def write_centre(path, samples):
    """A model whose outputs are the mean of its input, and 1; for a ramp, the mean is its centre."""
    graph = Graph()
    mean = graph.add("ReduceMean", "waveform", np.array([1]), keepdims=1)
    one = graph.add("Add", graph.add("Mul", mean, np.float32(0)), np.float32(1))
    return graph.write(path, (1, samples), {one: (1, 1), mean: (1, 1)}), mean


@pytest.mark.parametrize(("length", "hop"), [(1000, 500), (700, 500), (3234, 500), (3234, 1300), (8000, 250)])
def test_a_window_has_its_centre_and_a_part_those_inside_or_the_nearest(tmp_path, length, hop):
    """Of a recording whose samples are their times; the last window is up to a hop early."""
    file, mean = write_centre(tmp_path / "model.onnx", 1000)
    whole = record(tmp_path, "a.wav", (np.arange(length) / 16_000).astype(np.float32))
    at = [None, (0.0, 0.1), (0.031, 0.11), (0.04, 0.041), (0.06, 0.5)]
    clips = [replace(whole, name=f"{each}", file="a.wav", part=each) for each in at]
    text = f'file = "{file.name}"\nlayer = "{mean}"\nhop_seconds = {hop / 16_000}\n'
    tagger = run_on(tmp_path, text, clips)
    assert (tagger.classes, tagger.window, tagger.hop) == (0, 1000 / 16_000, hop / 16_000)
    times = tagger.outputs(0)[:, 0] + 0.5 / 16_000  # the mean of n samples is half a sample early
    if length < 1000:
        assert len(times) == 1
        return
    expected = [(500 + start) / 16_000 for start in (*range(0, length - 1000, hop), length - 1000)]
    assert_allclose(times, expected, rtol=1e-4)
    known = tagger.centres(0, len(times))
    assert_allclose(known[:-1], times[:-1], rtol=1e-4)
    assert abs(known[-1] - times[-1]) <= hop / 2 / 16_000 + 1e-6
    for place, part in enumerate(at[1:], 1):
        inside = [time for time in known if part[0] <= time < part[1]]
        rows = tagger.outputs(place)[:, 0] + 0.5 / 16_000
        centres = tagger.centres(place, len(rows)) + part[0]
        assert len(rows) == len(centres) == max(len(inside), 1)
        if inside:
            assert_allclose(centres, inside, rtol=1e-6)
            assert_allclose(rows, times[np.isin(known, inside)], rtol=1e-6)
        else:
            nearest = times[np.abs(known - sum(part) / 2).argmin()]
            assert_allclose([*rows, *centres], [nearest, sum(part) / 2], rtol=1e-6)


PITCHES = (500.0, 1000.0, 3000.0)


def spectrum_of(window):
    time = np.arange(len(window)) / 16_000
    waves = np.exp(2j * np.pi * np.outer(PITCHES, time))
    return np.log(np.abs(waves @ window / len(window)) ** 2 + 1e-6)


@pytest.mark.parametrize(
    ("text", "classes", "parts"),
    [
        ("", 3, ["scores"]),
        ('layer = "levels"', 0, ["levels"]),
        ('layer = "scor"', 0, ["scores"]),
        ('classes = "names.txt"\nlayer = "levels"', 3, ["scores", "levels"]),
        ('classes = "names.txt"', 3, ["scores"]),
    ],
)
def test_outputs_are_scores_if_there_are_classes_or_no_layer_and_then_the_layer(
    tmp_path, text, classes, parts
):
    write_spectrum(tmp_path / "model.onnx", 1000, PITCHES, 16_000)
    (tmp_path / "names.txt").write_text("A\nB\nC\n")
    waveform = noise(2500)
    clip = record(tmp_path, "a.wav", waveform)
    tagger = run_on(tmp_path, f'file = "model.onnx"\n{text}\n', [clip])
    levels = np.stack(
        [spectrum_of(waveform[start : start + 1000].astype(float)) for start in (0, 500, 1000, 1500)]
    )
    outputs = {"levels": levels, "scores": 1 / (1 + np.exp(-levels - 6))}
    found = tagger.outputs(0)
    assert tagger.classes == classes and found.dtype == np.float32
    assert_allclose(found, np.hstack([outputs[name] for name in parts]), rtol=1e-3, atol=1e-4)
    logits = np.clip(levels + 6, logit(1e-3), logit(1 - 1e-3))[:, :classes]
    assert_allclose(tagger.logits(found), logits, rtol=1e-3, atol=1e-3)


def test_only_a_head_can_use_a_tagger_without_classes(tmp_path, clip):
    write_spectrum(tmp_path / "model.onnx", 1000, PITCHES, 16_000)
    (tmp_path / "tagger.toml").write_text('file = "model.onnx"\n')
    with refused(r"tagger\.toml: events: expected some of dog, siren, got none"):
        logits_of(tmp_path / "tagger.toml", [clip])
    (tmp_path / "tagger.toml").write_text('file = "model.onnx"\n[events]\ndog = ["Dog"]\n')
    with refused(r"tagger\.toml: classes: expected the names of its classes, since events name some"):
        logits_of(tmp_path / "tagger.toml", [clip])


def test_another_layer_has_other_outputs_in_the_cache(tmp_path, clip):
    write_spectrum(tmp_path / "model.onnx", 1000, PITCHES, 16_000)
    outputs = [
        run_on(tmp_path, f'file = "model.onnx"\nlayer = "{layer}"\n', [clip]).outputs(0)
        for layer in ("levels", "scores", "levels")
    ]
    assert_array_equal(outputs[0], outputs[2])
    assert (outputs[0] != outputs[1]).all()


@pytest.mark.parametrize("shape", ["number", "samples"])
def test_a_layer_of_another_size_is_flattened_or_refused(tmp_path, shape):
    """A single number is a layer of size 1; one row per sample, in a model of any length, is none."""
    graph = Graph()
    absolute = graph.add("Abs", "waveform")
    loudest = graph.add("ReduceMax", absolute, keepdims=0)
    layer, sizes = (loudest, ()) if shape == "number" else (absolute, (1, "samples"))
    graph.write(tmp_path / "model.onnx", (1, "samples"), {layer: sizes})
    clip = record(tmp_path, "a.wav", noise(1500))
    text = f'file = "model.onnx"\nlayer = "{layer}"\n'
    if shape == "number":
        assert_allclose(run_on(tmp_path, text, [clip]).outputs(0), [[np.abs(noise(1500)).max()]], rtol=1e-6)
        return
    with refused(r"model\.onnx"):
        run_on(tmp_path, text, [clip])
