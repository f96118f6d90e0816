"""The front end beside librosa and Kaldi: all three compute one thing, and a wrong setting is noticed."""

import dataclasses
import importlib.util
from functools import partial

import numpy as np
import pytest

from benchmarks.speed import log_mel
from benchmarks.speed.log_mel import (
    CLOSE,
    FEATURES,
    blocks,
    in_jax,
    in_kaldi,
    in_librosa,
    noise,
    parts,
    rows,
)
from benchmarks.speed.turns import agree
from qkd_jax.audio import log_mel_numpy as front_end
from qkd_jax.audio.log_mel import TILE
from qkd_jax.audio.mel import mel_basis, window
from qkd_jax.errors import InputError

SMALL = dataclasses.replace(FEATURES, win_length=300, hop_length=100, n_mels=20, fmin=120.0, fmax=5000.0)
PEERS = {"librosa": in_librosa, "kaldi_native_fbank": in_kaldi}


def test_noise_is_now_loud_now_nearly_silent():
    spread = noise(40).reshape(40, -1).std(axis=1)
    assert spread.min() < 1e-3 < 1e-1 < spread.max() < 0.33


# One sample less than a frame of a third block, that frame, and many samples beyond it.
@pytest.mark.parametrize("samples", [32_399, 32_400, 40_123])
def test_frames_of_the_blocks_are_those_of_the_whole(samples):
    waveform = noise(3)[:samples]
    pieces = [front_end.log_mel(FEATURES, piece) for piece in blocks(waveform, 1)]
    assert [len(piece) for piece in pieces[:2]] == [100, 100]
    np.testing.assert_array_equal(np.concatenate(pieces), front_end.log_mel(FEATURES, waveform))


@pytest.mark.parametrize("features", [FEATURES, SMALL])
@pytest.mark.parametrize("peer", PEERS)
def test_peers_agree(peer, features):
    pytest.importorskip(peer)
    waveform, theirs = noise(3), PEERS[peer](features)
    for ours in in_jax(features), partial(front_end.log_mel, features):
        assert 0 < agree(peer, ours(waveform), theirs(waveform), CLOSE) < CLOSE


@pytest.mark.parametrize("wrong", [{"fmin": 51.0}, {"floor": 1.001e-6}, {"win_length": 399}, {"n_mels": 65}])
@pytest.mark.parametrize("peer", PEERS)
def test_a_wrong_setting_is_noticed(peer, wrong):
    pytest.importorskip(peer)
    theirs = PEERS[peer](dataclasses.replace(FEATURES, **wrong))
    with pytest.raises(InputError, match=r"off by|one shape"):
        agree(peer, in_jax(FEATURES)(noise(3)), theirs(noise(3)), CLOSE)


def test_rows_without_kaldi(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    jax, numpy, *parts = rows(2, seconds=2, block=1)
    assert (jax.peer, jax.at_least, numpy.peer, numpy.at_least) == ("librosa", 10, "librosa", None)
    assert len(jax.seconds) == len(jax.peer_seconds) == 2 and jax.seconds != numpy.seconds
    assert max(jax.off, numpy.off) < CLOSE
    assert [row.peer for row in parts] == [None, None] and all(len(row.seconds) == 2 for row in parts)


def test_parts_are_what_log_mel_takes():
    waveform = noise(1)
    to_power, by_bands = parts(SMALL).values()
    starts = np.arange(SMALL.frames(len(waveform)) // TILE * TILE) * SMALL.hop_length
    frames = np.stack([waveform[start : start + SMALL.win_length] for start in starts])
    power = np.abs(np.fft.rfft(frames * window(SMALL), SMALL.n_fft)) ** 2
    np.testing.assert_allclose(to_power(waveform).reshape(power.shape), power, atol=1e-4 * power.max())
    bins = np.stack([waveform[start : start + SMALL.n_fft // 2 + 1] for start in starts])
    expected = bins @ mel_basis(SMALL)
    np.testing.assert_allclose(by_bands(waveform).reshape(expected.shape), expected, atol=1e-6)


def test_rows_with_kaldi():
    pytest.importorskip("kaldi_native_fbank")
    found = {
        (row.ours.split()[-1], row.peer): row.at_least for row in rows(1, seconds=2, block=1) if row.peer
    }
    assert found == {
        ("JAX", "librosa"): 10,
        ("JAX", "kaldi-native-fbank"): 1,
        ("NumPy", "librosa"): None,
        ("NumPy", "kaldi-native-fbank"): None,
    }


def test_rows_refuse_a_peer_that_computes_something_else(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(log_mel, "in_librosa", lambda features: in_librosa(SMALL))
    with pytest.raises(InputError, match="librosa: expected one shape"):
        next(rows(1, seconds=2, block=1))
