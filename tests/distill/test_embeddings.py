"""Embeddings of recordings: the place of each window, the ends of a recording, the cache, and errors."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from qkd_jax.audio.reading import read_audio
from qkd_jax.distill import embeddings as embeddings_module
from qkd_jax.distill.embeddings import tagger_embeddings
from tests.faults import refused, refused_in_one_line
from tests.recordings import noise, record
from tests.waveform_models import write_loudness


def describe(folder, text='layer = "absolute"'):
    path = folder / "tagger.toml"
    path.write_text(f'file = "model.tflite"\nclasses = "none.txt"\n{text}\n[events]\ndog = ["Dog"]\n')
    return path


def embeddings_of(path, clips):
    entries, hop = tagger_embeddings(path, clips, path.parent / "cache")
    assert len(entries) == len(clips)
    return [np.load(entry) for entry in entries], hop


@pytest.mark.parametrize(
    ("shape", "text", "window", "hop"),
    [
        ((1, 1000), "", 1000, 500),
        ((999,), "hop_seconds = 0.0625", 999, 1000),
        ((1, "samples"), "window_seconds = 0.125\nhop_seconds = 0.003125", 2000, 50),
        (("samples",), "window_seconds = 0.0200625", 321, 160),
    ],
)  # fmt: skip
def test_a_row_belongs_to_the_window_around_its_time(tmp_path, shape, text, window, hop):
    write_loudness(tmp_path / "model.tflite", shape, [0.1])
    lengths = (1001, 2000, 2234, 4000)
    clips = [record(tmp_path, f"{length}.wav", noise(length, length)) for length in lengths]
    embeddings, seconds = embeddings_of(describe(tmp_path, f'layer = "absolute"\n{text}'), clips)
    assert seconds == hop / 16_000
    for rows, length in zip(embeddings, lengths):
        # The layer is the input without signs.  Sample -i is sample i; the other end is mirrored likewise.
        place = hop * np.arange(1 + length // hop)[:, None] + np.arange(window) - window // 2
        place = (length - 1) - np.abs((length - 1) - np.abs(place))
        assert_array_equal(rows, np.abs(noise(length, length))[place])
        assert rows.dtype == np.float32


def test_a_clip_shorter_than_half_a_window_is_repeated(tmp_path):
    write_loudness(tmp_path / "model.tflite", (1, 1000), [0.1])
    lengths = (2, 77, 500)
    clips = [record(tmp_path, f"{length}.wav", noise(length, length)) for length in lengths]
    embeddings, _ = embeddings_of(describe(tmp_path), clips)
    for rows, length in zip(embeddings, lengths):
        place = (500 * np.arange(1 + length // 500)[:, None] + np.arange(1000) - 500) % length
        assert_array_equal(rows, np.abs(noise(length, length))[place])


def test_recordings_are_resampled(tmp_path):
    write_loudness(tmp_path / "model.tflite", (1, 1000), [0.1])
    clip = record(tmp_path, "a.wav", noise(22_050), 22_050)
    (rows,), hop = embeddings_of(describe(tmp_path, 'layer = "absolute"\nsample_rate = 8000'), [clip])
    assert hop == 500 / 8000
    assert_array_equal(rows[1], np.abs(read_audio(clip.path, 8000)[:1000]))


def test_embeddings_of_each_recording_are_computed_once(tmp_path, monkeypatch):
    write_loudness(tmp_path / "model.tflite", (1, 1000), [0.2, 0.5])
    clips = [record(tmp_path, f"{index}.wav", noise(1500, index)) for index in range(4)]
    read = []
    monkeypatch.setattr(
        embeddings_module, "read_audio", lambda *of, **channel: read.append(of[0]) or read_audio(*of)
    )
    first, _ = embeddings_of(describe(tmp_path), clips[:2])
    embeddings, _ = embeddings_of(describe(tmp_path), clips)
    assert_array_equal(embeddings[:2], first)
    assert sorted(read) == [clip.path for clip in clips]

    # Another layer (here of the same size and almost equal), hop or model gives other entries.
    def others(text):
        return np.array(embeddings_of(describe(tmp_path, text), clips)[0])

    codes, apart = others('layer = "absolute/codes"'), others('layer = "absolute"\nhop_seconds = 0.1')
    assert (codes.shape, apart.shape) == ((4, 4, 1000), (4, 1, 1000))
    assert (codes != np.array(embeddings)).any()
    assert_allclose(codes, embeddings, atol=0.5 / 64)
    scores = others('layer = "scores"')
    write_loudness(tmp_path / "model.tflite", (1, 1000), [0.4, 1.0])
    assert_allclose(others('layer = "scores"'), 2 * scores, rtol=1e-6)
    assert len(read) == 4 * 5


@pytest.mark.parametrize(
    ("shape", "text", "error"),
    [
        ((1, 1000), "", r"tagger\.toml: layer: expected the name of an inner tensor, found none"),
        ((1, 1000), "layer = 7", r"tagger\.toml: layer: expected text, got 7"),
        ((1, 1000), 'layer = "absolut/"', r"layer: expected a tensor that .* maybe 'absolute"),
        ((1, "samples"), 'layer = "loudest"', r"window_seconds: expected a length, since .* takes any, f"),
    ],
)  # fmt: skip
def test_errors_of_the_description_are_named(tmp_path, shape, text, error):
    write_loudness(tmp_path / "model.tflite", shape, [0.2])
    with refused_in_one_line(error):
        embeddings_of(describe(tmp_path, text), [record(tmp_path, "a.wav", noise(1000))])


def test_errors_of_the_files_are_named(tmp_path):
    clips = [record(tmp_path, "a.wav", noise(1500)), record(tmp_path, "b.wav", noise(1500))]
    (tmp_path / "b.wav").write_bytes((tmp_path / "b.wav").read_bytes()[:1000])
    with refused(r"none\.toml: expected a tagger's settings in TOML"):
        embeddings_of(tmp_path / "none.toml", clips)
    write_loudness(tmp_path / "model.tflite", (1, 1000), [0.2])
    with refused(r"1 of 2 recordings can't be used:\n.*b\.wav: cut off"):
        embeddings_of(describe(tmp_path), clips)
    write_loudness(tmp_path / "model.tflite", (1, 1000), [np.nan])
    with refused(r"expected finite embeddings of .*a\.wav, found NaN or infinity"):
        embeddings_of(describe(tmp_path, 'layer = "scores"'), clips[:1])
