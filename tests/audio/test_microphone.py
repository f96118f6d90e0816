"""The microphone, with a sounddevice made for the test."""

import contextlib
import importlib
import itertools
import sys
import types

import numpy as np
import pytest

from qkd_jax.audio.microphone import microphone_blocks
from qkd_jax.errors import InputError

RATE = 8000


class PortAudioError(Exception):
    """What sounddevice raises."""


@contextlib.contextmanager
def device(rate, channels, dtype):
    """A device whose samples count up, and which supports one rate."""
    if rate != RATE:
        raise PortAudioError("Invalid sample rate")
    assert (channels, dtype) == (1, "float32")
    indices = itertools.count()

    def read(samples):
        index = next(indices)
        block = np.arange(index * samples, (index + 1) * samples, dtype=np.float32)[:, None] / 2**15
        return block, index == 2  # the third comes too late

    yield types.SimpleNamespace(read=read)


@pytest.fixture
def sounddevice(monkeypatch):
    fake = types.SimpleNamespace(InputStream=device, PortAudioError=PortAudioError)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)


@pytest.mark.usefixtures("sounddevice")
def test_blocks_are_consecutive_and_lost_samples_are_reported_once(capsys):
    blocks = list(itertools.islice(microphone_blocks(RATE), 5))
    samples = np.concatenate(blocks)
    np.testing.assert_array_equal(samples, np.arange(len(samples), dtype=np.float32) / 2**15)
    assert samples.dtype == np.float32 and len(samples) == RATE // 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("samples were lost") == 1


@pytest.mark.usefixtures("sounddevice")
def test_an_unsupported_rate_is_named():
    with pytest.raises(InputError, match=r"mic: expected a device that records 44100 .* Invalid sample rate"):
        next(microphone_blocks(44_100))


def test_without_sounddevice_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(InputError, match=r"mic: expected sounddevice: pip install sounddevice"):
        next(microphone_blocks(RATE))


def test_without_portaudio_the_library_is_named(monkeypatch, tmp_path):
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=r"mic: expected the PortAudio library .*libportaudio2.*not found"):
        next(microphone_blocks(RATE))
