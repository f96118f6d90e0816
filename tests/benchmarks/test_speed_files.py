"""Features on disk beside a loop of librosa's: the same features, and each time from nothing."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from benchmarks.speed import files
from benchmarks.speed.files import librosa_loop, ours, recordings, rows
from benchmarks.speed.log_mel import CLOSE, FEATURES, in_librosa, noise
from benchmarks.speed.turns import agree
from qkd_jax.errors import InputError


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Clips of a second; and what `rows` sets for its workers is undone."""
    monkeypatch.setattr(files, "CLIP_SECONDS", 1)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")


def test_recordings_are_noise_of_16_bits(tmp_path):
    clips = recordings(tmp_path, 3)
    assert len({clip.path.read_bytes() for clip in clips}) == 3
    for seed, clip in enumerate(clips):
        samples, rate = soundfile.read(clip.path, dtype="float32")
        assert rate == 16_000 and soundfile.info(clip.path).subtype == "PCM_16"
        expected = np.clip(noise(1, seed=seed), -1, 1)
        np.testing.assert_allclose(samples, expected, rtol=0, atol=2**-15)


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


def test_a_recording_that_is_no_recording_is_an_error(tmp_path):
    (clip,) = recordings(tmp_path, 1)
    clip.path.write_bytes(b"RIFF")
    with pytest.raises(InputError, match="expected recordings"):
        ours([clip], tmp_path / "cache")


def test_row(capsys):
    (row,) = rows(2, count=3, workers=1)
    assert (row.what, row.at_least, len(row.seconds), len(row.peer_seconds)) == ("3 clips of 1 s", 3, 2, 2)
    assert row.off < CLOSE
    # The comparison, the call that doesn't count, and two rounds.
    assert capsys.readouterr().out == "features: 3 of 3 recordings to read\n" * 4


def test_a_loop_that_computes_something_else_is_refused(monkeypatch):
    other = in_librosa(dataclasses.replace(FEATURES, fmin=51.0))

    def loop(pool, clips, folder):
        paths = [folder / f"{clip.path.stem}.npy" for clip in clips]
        for clip, path in zip(clips, paths):
            np.save(path, other(soundfile.read(clip.path, dtype="float32")[0]))
        return paths

    monkeypatch.setattr(files, "librosa_loop", loop)
    with pytest.raises(InputError, match="librosa: expected the peer within"):
        next(rows(1, count=2, workers=1))
