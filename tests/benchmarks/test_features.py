"""The front end beside librosa and Kaldi: the same features, and wrong settings are noticed."""

import dataclasses
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import soundfile

from benchmarks.speed import features as benchmark
from benchmarks.speed.features import (
    CLOSE,
    FEATURES,
    THREADS,
    blocks,
    file_rows,
    hour_rows,
    in_jax,
    in_kaldi,
    in_librosa,
    librosa_loop,
    noise,
    ours,
    recordings,
)
from benchmarks.speed.measure import agree
from qkd_jax.audio import log_mel_numpy
from qkd_jax.errors import InputError

SMALL = dataclasses.replace(FEATURES, win_length=300, hop_length=100, n_mels=20, fmin=120.0, fmax=5000.0)
PEERS = {"librosa": in_librosa, "kaldi_native_fbank": in_kaldi}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Make clips of a second, and undo what `file_rows` sets for its workers."""
    monkeypatch.setattr(benchmark, "CLIP_SECONDS", 1)
    for name in THREADS:
        monkeypatch.setenv(name, "2")


def test_noise_is_alternately_loud_and_nearly_silent():
    spread = noise(40).reshape(40, -1).std(axis=1)
    assert spread.min() < 1e-3 < 1e-1 < spread.max() < 0.33


# One sample less than a frame of a third block, that frame, and many samples beyond it.
@pytest.mark.parametrize("samples", [32_399, 32_400, 40_123])
def test_frames_of_the_blocks_are_those_of_the_whole(samples):
    waveform = noise(3)[:samples]
    pieces = [log_mel_numpy.log_mel(FEATURES, piece) for piece in blocks(waveform, 1)]
    assert [len(piece) for piece in pieces[:2]] == [100, 100]
    np.testing.assert_array_equal(np.concatenate(pieces), log_mel_numpy.log_mel(FEATURES, waveform))


@pytest.mark.parametrize("features", [FEATURES, SMALL])
@pytest.mark.parametrize("peer", PEERS)
def test_peers_agree(peer, features):
    pytest.importorskip(peer)
    waveform, theirs = noise(3), PEERS[peer](features)
    for way in in_jax(features), partial(log_mel_numpy.log_mel, features):
        assert 0 < agree(peer, way(waveform), theirs(waveform), CLOSE) < CLOSE


@pytest.mark.parametrize("wrong", [{"fmin": 51.0}, {"floor": 1.001e-6}, {"win_length": 399}, {"n_mels": 65}])
@pytest.mark.parametrize("peer", PEERS)
def test_a_wrong_setting_is_noticed(peer, wrong):
    pytest.importorskip(peer)
    theirs = PEERS[peer](dataclasses.replace(FEATURES, **wrong))
    with pytest.raises(InputError, match=r"off by|one shape"):
        agree(peer, in_jax(FEATURES)(noise(3)), theirs(noise(3)), CLOSE)


def test_rows_of_an_hour_without_kaldi(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    jax, numpy = hour_rows(2, seconds=2, block=1)
    assert (jax.peer, jax.at_least, numpy.peer, numpy.at_least) == ("librosa", 10, "librosa", None)
    assert len(jax.seconds) == len(jax.peer_seconds) == 2 and jax.seconds != numpy.seconds
    assert max(jax.off, numpy.off) < CLOSE
    monkeypatch.setattr(benchmark, "in_librosa", lambda features: in_librosa(SMALL))
    with pytest.raises(InputError, match="librosa: expected one shape"):
        next(hour_rows(1, seconds=2, block=1))


def test_recordings_are_noise_of_16_bits(tmp_path):
    clips = recordings(tmp_path, 3)
    assert len({clip.path.read_bytes() for clip in clips}) == 3
    for seed, clip in enumerate(clips):
        samples, rate = soundfile.read(clip.path, dtype="float32")
        assert rate == 16_000 and soundfile.info(clip.path).subtype == "PCM_16"
        np.testing.assert_allclose(samples, np.clip(noise(1, seed=seed), -1, 1), rtol=0, atol=2**-15)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:audioread.rawread")
def test_both_write_the_same_features(tmp_path):
    clips = recordings(tmp_path, 2)
    (tmp_path / "theirs").mkdir()
    with ThreadPoolExecutor(1) as pool:
        theirs = librosa_loop(pool, clips, tmp_path / "theirs")
    mine = ours(clips, tmp_path / "ours")
    assert [len({path.read_bytes() for path in paths}) for paths in (mine, theirs)] == [2, 2]
    for one, other in zip(mine, theirs):
        assert np.load(one).shape == (98, 64)
        agree("librosa", np.load(one), np.load(other), CLOSE)
    clips[0].path.write_bytes(b"RIFF")
    with pytest.raises(InputError, match="expected recordings"):
        ours(clips[:1], tmp_path / "cache")


@pytest.mark.slow
def test_the_row_of_files_and_a_loop_that_computes_something_else(monkeypatch, capsys):
    (row,) = file_rows(2, count=3, workers=1)
    assert (row.what, row.at_least, len(row.seconds), len(row.peer_seconds)) == ("3 clips of 1 s", 3, 2, 2)
    assert row.off < CLOSE
    # The comparison, the call that doesn't count, and two rounds.
    assert capsys.readouterr().out == "features: 3 of 3 recordings to read\n" * 4
    other = in_librosa(dataclasses.replace(FEATURES, fmin=51.0))

    def loop(pool, clips, folder):
        paths = [folder / f"{clip.path.stem}.npy" for clip in clips]
        for clip, path in zip(clips, paths):
            np.save(path, other(soundfile.read(clip.path, dtype="float32")[0]))
        return paths

    monkeypatch.setattr(benchmark, "librosa_loop", loop)
    with pytest.raises(InputError, match="librosa: expected the peer within"):
        next(file_rows(1, count=2, workers=1))
