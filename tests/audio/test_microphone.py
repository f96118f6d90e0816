"""The microphone, through a sounddevice that plays back what a test recorded."""

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


class Device:
    """A device that counts its samples, and fails at a rate that it doesn't have."""

    def __init__(self, rate, channels, dtype):
        if rate != RATE:
            raise PortAudioError("Invalid sample rate")
        assert (channels, dtype) == (1, "float32")
        self.heard, self.open = 0, False

    def __enter__(self):
        self.open = True
        return self

    def __exit__(self, *_):
        self.open = False

    def read(self, samples):
        assert self.open
        begin, self.heard = self.heard, self.heard + samples
        block = np.arange(begin, self.heard, dtype=np.float32)[:, None] / 2**15
        return block, begin == 2 * samples  # the third comes too late


@pytest.fixture
def sounddevice(monkeypatch):
    fake = types.SimpleNamespace(InputStream=Device, PortAudioError=PortAudioError)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)


@pytest.mark.usefixtures("sounddevice")
def test_blocks_follow_one_another_and_lost_samples_are_said_once(capsys):
    blocks = list(itertools.islice(microphone_blocks(RATE), 5))
    samples = np.concatenate(blocks)
    np.testing.assert_array_equal(samples, np.arange(len(samples), dtype=np.float32) / 2**15)
    assert samples.dtype == np.float32 and len(samples) == RATE // 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("samples were lost") == 1


@pytest.mark.usefixtures("sounddevice")
def test_a_device_that_cannot_is_named():
    with pytest.raises(InputError, match=r"mic: expected a device that records 44100 .* Invalid sample rate"):
        next(microphone_blocks(44_100))


def test_without_sounddevice_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(InputError, match=r"mic: expected sounddevice: pip install -e '\.\[microphone\]'"):
        next(microphone_blocks(RATE))


def test_without_portaudio_the_library_is_named(monkeypatch, tmp_path):
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=r"mic: expected the PortAudio library .*libportaudio2.*not found"):
        next(microphone_blocks(RATE))
