"""The front end beside librosa and Kaldi: the same features, and wrong settings are noticed."""

import dataclasses
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from benchmarks.speed import features as benchmark
from benchmarks.speed.features import (
    CLOSE,
    FEATURES,
    THREADS,
    blocks,
    hour_rows,
    in_jax,
    in_kaldi,
    in_librosa,
    librosa_file,
    loop_in,
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning:audioread.rawread")
def test_both_write_the_same_features(tmp_path):
    clips = recordings(tmp_path, 2)
    (tmp_path / "theirs").mkdir()
    with ThreadPoolExecutor(1) as pool:
        theirs = loop_in(pool, librosa_file, clips, tmp_path / "theirs")
    mine = ours(clips, tmp_path / "ours")
    assert [len({path.read_bytes() for path in paths}) for paths in (mine, theirs)] == [2, 2]
    for one, other in zip(mine, theirs):
        assert np.load(one).shape == (98, 64)
        agree("librosa", np.load(one), np.load(other), CLOSE)
    clips[0].path.write_bytes(b"RIFF")
    with pytest.raises(InputError, match="expected recordings"):
        ours(clips[:1], tmp_path / "cache")
