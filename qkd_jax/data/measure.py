"""Measurements of recordings: length, level, channels, band limit, and a digest of the samples."""

import hashlib
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qkd_jax.audio.log_mel_numpy import log_mel
from qkd_jax.audio.reading import Pieces, mono, pieces_of
from qkd_jax.config import FeatureConfig
from qkd_jax.errors import InputError

FULL_SCALE = 0.999
"""A sample of at least this magnitude counts as clipped: lossy formats don't keep the exact limits."""
BAND_DB = 70.0
"""The band limit is the highest frequency whose mean power is within so many dB of the strongest."""
SILENT = -200.0
"""The lowest level, in dB re full scale."""
_POINTS = 512  # of the FFT behind the band limit
_LOUD = 1e-3  # a thousandth of the floor's energy, in the natural logarithm
_FEW = 64  # recordings; reading so few takes less time than starting processes
_PIECE = 8  # recordings handed to a process at once


class Measured(NamedTuple):
    """One recording; levels are RMS in dB re full scale, -200 at least."""

    fault: str = ""
    """Why it can't be used; the other figures are then those of the part that could be read."""
    seconds: float = 0.0
    digest: bytes = b""
    """SHA-256 of the samples at the model's rate: equal for equal samples in any lossless format."""
    level: float = SILENT
    silent: bool = False
    """Whether a model sees nothing: see `is_silent`."""
    offset: float = 0.0
    """Mean of the samples."""
    band: float = 0.0
    """Band limit in Hz, at most half the model's rate."""
    rate: int = 0
    form: str = ""
    """The file's suffix."""
    channel_levels: tuple[float, ...] = ()
    clipped: float = 0.0
    """Share of clipped samples in [0, 1], of the channel with most."""
    same_channels: bool = False
    """Whether it has several channels, all equal."""


def measure_all(
    paths: Sequence[Path], features: FeatureConfig, channel: int | None = None
) -> Iterator[Measured]:
    """Measure recordings, in order, on all cores.  Raises InputError if a process that reads them dies."""
    measure_one = partial(measure, features=features, channel=channel)
    if len(paths) <= _FEW:
        yield from map(measure_one, paths)
        return
    # Threads would wait for Python's turns; a fork of a process that runs JAX may hang.
    with ProcessPoolExecutor(cpu_count(), get_context("spawn"), _leave_ctrl_c_to_the_parent) as pool:
        try:
            yield from pool.map(measure_one, paths, chunksize=_PIECE)
        except BrokenProcessPool:
            raise InputError(
                "reading the recordings: expected every process to end well, found one killed "
                "(for lack of memory, or by a fault in a decoder)"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def measure(path: Path, features: FeatureConfig, channel: int | None = None) -> Measured:
    """Measure one recording, read as training reads it; never raises InputError."""
    rate, count, total, energy, low, high = features.sample_rate, 0, 0.0, 0.0, np.inf, -np.inf
    channels, digest, power, fault = _Channels(), hashlib.sha256(), np.zeros(_POINTS // 2 + 1), ""
    silence = _Silence(features)
    try:
        for block in mono(channels.pieces(pieces_of(path)), path, rate, channel):
            count += len(block)
            digest.update((block + np.float32(0)).tobytes())  # -0 becomes 0
            total += block.sum(dtype=np.float64)
            energy += np.square(block, dtype=np.float64).sum()
            low, high = block.min(initial=low), block.max(initial=high)
            power += _power(block)
            silence.push(block)
        if not features.frames(count):
            raise InputError(
                f"{path}: expected at least {features.win_length} samples at {rate} Hz, found {count}"
            )
    except (InputError, OSError) as error:
        fault = str(error)
    of_file = channels.measured()._replace(form=path.suffix.lower())
    if not count:
        return of_file._replace(fault=fault)
    strong = np.flatnonzero(power >= power.max() * 10 ** (-BAND_DB / 10))
    return of_file._replace(
        fault=fault,
        seconds=count / rate,
        # All silent recordings of one length are equal, which means nothing.
        digest=b"" if fault or low == high else digest.digest(),
        level=decibels(energy / count),
        silent=silence.lasts,
        offset=float(total / count),
        band=float(strong[-1]) * rate / _POINTS,
    )


def _power(block: np.ndarray) -> np.ndarray:
    """The sum of the power spectra of the whole windows in `block`: a padded one would hold a click."""
    windows = block[: len(block) // _POINTS * _POINTS].reshape(-1, _POINTS)
    return np.square(np.abs(np.fft.rfft(windows * np.hanning(_POINTS)))).sum(axis=0)


def decibels(power: float) -> float:
    """A mean square in dB re full scale, at least -200.

    >>> decibels(0.01), decibels(0.0)
    (-20.0, -200.0)
    """
    return float(10 * np.log10(max(power, 1e-20)))


def is_silent(features: np.ndarray, config: FeatureConfig) -> bool:
    """Whether no frame of `features`, log-mel energies, has more than a thousandth of the floor's energy."""
    loudest = np.log(config.floor) + _LOUD
    return bool(features[0].max() <= loudest and features.max() <= loudest)


class _Silence:
    """Whether the recording whose blocks are pushed `is_silent`; mostly, its first second tells."""

    def __init__(self, features: FeatureConfig):
        self.features, self.rest, self.lasts = features, np.zeros(0, np.float32), True

    def push(self, block: np.ndarray) -> None:
        second = self.features.sample_rate
        for start in range(0, len(block), second):
            if not self.lasts:
                return
            samples = np.concatenate([self.rest, block[start : start + second]])
            if frames := self.features.frames(len(samples)):
                self.lasts = is_silent(log_mel(self.features, samples), self.features)
            self.rest = samples[frames * self.features.hop_length :]


class _Channels:
    """What only the channels before averaging tell, of the pieces that have passed through `pieces`."""

    def __init__(self) -> None:
        self.rate, self.count, self.same = 0, 0, True
        self.energy, self.clipped = np.zeros(1), np.zeros(1)

    def pieces(self, pieces: Pieces) -> Pieces:
        for rate, piece in pieces:
            if piece.shape[1] != len(self.energy):  # the first piece, or recordings joined end to end
                self.energy, self.clipped = (
                    np.resize(each, piece.shape[1]) for each in (self.energy, self.clipped)
                )
            with np.errstate(over="ignore", invalid="ignore"):  # bad samples are reported by `mono`
                self.energy += np.square(piece, dtype=np.float64).sum(axis=0)
                self.clipped += (np.abs(piece) >= FULL_SCALE).sum(axis=0)
            self.same = self.same and bool((piece == piece[:, :1]).all())
            self.rate, self.count = rate, self.count + len(piece)
            yield rate, piece

    def measured(self) -> Measured:
        if not self.count or not np.isfinite(self.energy).all():
            return Measured(rate=self.rate)
        return Measured(
            rate=self.rate,
            channel_levels=tuple(decibels(each) for each in self.energy / self.count),
            clipped=float(self.clipped.max() / self.count),
            same_channels=self.same and len(self.energy) > 1,
        )


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
