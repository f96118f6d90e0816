"""Reading recordings of any rate, length and number of channels, in any format that libsndfile reads."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qkd_jax.errors import InputError

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".au", ".caf", ".w64", ".rf64"}
"""Suffixes of files that are taken for recordings when a folder is searched."""
_BLOCK_SECONDS = 30
_BLOCK = 1 << 23
"""Most values in a block, over all channels, whatever rate a header claims."""
_MAX_RATIO = 64
"""Largest ratio of the wanted rate to a file's: else a false header could turn a second into an hour."""
_UNKNOWN = 0x7F000000
"""Lengths from here on are placeholders, written by programs that write to a pipe."""


def read_audio(path: str | Path, sample_rate: int = 16_000) -> np.ndarray:
    """The recording at `path` as float32 [samples]: the blocks of `audio_blocks`, joined."""
    return np.concatenate(list(audio_blocks(path, sample_rate)))


def audio_blocks(
    path: str | Path, sample_rate: int = 16_000, *, silent: bool = False
) -> Iterator[np.ndarray]:
    """The recording at `path`, in blocks of float32 [samples] of at most about 30 s.

    Mono (mean of the channels) at `sample_rate` Hz, resampled with the high-quality filter of soxr; the
    samples don't depend on the cuts between blocks.  Raises InputError, at the latest after the last block,
    if the file can't be read or is cut off, if its rate is below 1/64 of `sample_rate`, if it holds no
    samples, NaN or infinity, and, unless `silent`, if all samples are equal.  (A cut-off Ogg file can't be
    told from a shorter one.)
    """
    import soundfile
    import soxr

    count, low, high = 0, np.inf, -np.inf
    try:
        with soundfile.SoundFile(path) as file:
            _check_whole(path, file.extra_info)
            if _MAX_RATIO * file.samplerate < sample_rate:
                raise InputError(
                    f"{path}: expected at least {sample_rate / _MAX_RATIO:g} samples per second, "
                    f"found {file.samplerate}"
                )
            frames = min(_BLOCK_SECONDS * file.samplerate, _BLOCK // file.channels)
            resample = soxr.ResampleStream(file.samplerate, sample_rate, 1, dtype="float32", quality="HQ")
            # Converted below to the same floats, in a third of libsndfile's time.
            dtype = "int16" if file.subtype == "PCM_16" else "float32"
            while len(block := file.read(frames, dtype, always_2d=True)):
                if dtype == "int16":
                    block = block * np.float32(2**-15)
                with np.errstate(over="ignore", invalid="ignore"):  # reported below
                    mono = block.mean(axis=1) if file.channels > 1 else block[:, 0]
                count += len(mono)
                low, high = min(low, mono.min()), max(high, mono.max())
                if not (np.isfinite(low) and np.isfinite(high)):
                    raise InputError(f"{path}: expected finite samples, found NaN or infinity")
                yield mono if file.samplerate == sample_rate else resample.resample_chunk(mono)
            if file.samplerate != sample_rate:
                yield resample.resample_chunk(np.zeros(0, np.float32), last=True)
            promised = file.frames
    except (OSError, RuntimeError, TypeError) as error:
        raise InputError(f"{path}: expected a recording that libsndfile reads: {error}") from None
    if not count:
        raise InputError(f"{path}: expected samples, found none")
    if count < promised:
        raise InputError(f"{path}: cut off: expected {promised} samples, found {count}")
    if low == high and not silent:
        raise InputError(f"{path}: silent: all {count} samples are {low:g}")


def _check_whole(path: str | Path, log: str) -> None:
    """Raise InputError if libsndfile's log shows that the header promises more bytes than the file has."""
    # The log's wording for WAV, AIFF, W64, RF64 and AU.
    sizes = r"^ *(?:data|SSND|riff|Riff size|Data Size) *: (\d+) \(should be (\d+)\)"
    for promised, found in re.findall(sizes, log, re.MULTILINE):
        if int(found) < int(promised) < _UNKNOWN:
            raise InputError(f"{path}: cut off: expected {promised} bytes, found {found}")
