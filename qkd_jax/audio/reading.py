"""Reading recordings of any format, rate, length and number of channels."""

import itertools
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qkd_jax.audio.decoder import decode_file
from qkd_jax.audio.encoding import samples_of
from qkd_jax.audio.wav import is_wav, wav_parts
from qkd_jax.errors import InputError, first_line
from qkd_jax.system.files import check_file
from qkd_jax.system.libraries import has

_UNCOMPRESSED = ".wav .wave .rf64 .aif .aiff .aifc .au .snd .caf .w64 .sph .voc"
_COMPRESSED = """
.flac .mp3 .mp2 .m4a .aac .ogg .oga .opus .wma .wv .ape .tta .tak .mpc .amr .3gp .ac3 .eac3 .dsf .mka .webm
.weba .m4b .m4r .spx .mp1 .3g2
"""
_VIDEOS = ".mp4 .m4v .mov .mkv .avi .asf .wmv .flv .mpg .mpeg .ts .mts .ogv"
SUFFIXES = frozenset(f"{_UNCOMPRESSED} {_COMPRESSED} {_VIDEOS}".split())
"""Suffixes of files that are taken for recordings when a folder is searched."""

_BLOCK_SECONDS = 30
_BLOCK = 1 << 23
"""Most values in a block, over all channels, whatever rate a header claims."""
_MAX_RATIO = 64
"""Largest ratio of the wanted rate to a file's: else a false header could turn a second into an hour."""
_MAX_PEAK = 10.0
"""Largest sample: 20 dB above full scale, which recorders of floats may exceed, but 16-bit values by far."""
_CANCELLED = 1e-6
"""Share of the channels' energy below which their mean is silent: -60 dB."""

Pieces = Iterator[tuple[int, np.ndarray]]
"""Pieces of a recording: their rate, and their samples, float32 [samples, channels]."""


def read_audio(path: str | Path, sample_rate: int = 16_000, *, channel: int | None = None) -> np.ndarray:
    """The recording at `path` as float32 [samples]: the blocks of `audio_blocks`, joined."""
    return np.concatenate(list(audio_blocks(path, sample_rate, channel=channel)))


def audio_blocks(
    path: str | Path, sample_rate: int = 16_000, *, channel: int | None = None
) -> Iterator[np.ndarray]:
    """The recording at `path`, in blocks of float32 [samples] of at most about 30 s.

    WAV files are read whatever length their headers give (see `wav`), Ogg Vorbis by libsndfile, everything
    else by FFmpeg (see `decoder`); without PyAV, FLAC by libsndfile.  Recordings joined end to end are read
    to the end.

    Mono: the mean of the channels, or `channel`, counted from 1.  At `sample_rate` Hz, resampled with the
    high-quality filter of soxr; the samples don't depend on the cuts between blocks.

    Raises InputError, at the latest after the last block, if the file can't be read, is cut off or damaged,
    if its rate is below 1/64 of `sample_rate`, if it holds no samples, NaN, infinity or values beyond ±10,
    and if the channels cancel each other in their mean.  (If the format has no length, as Ogg, a cut-off file
    can't be told from a shorter one.)
    """
    count = 0
    for block in mono(pieces_of(path), path, sample_rate, channel):
        count += len(block)
        yield block
    if not count:
        raise InputError(f"{path}: expected samples, found none")


def mono(
    pieces: Iterable[tuple[int, np.ndarray]], name: object, sample_rate: int, channel: int | None = None
) -> Iterator[np.ndarray]:
    """The `pieces` of a recording, float32 [samples, channels], as `audio_blocks` returns them."""
    import soxr

    current, resample = sample_rate, None
    energy, energy_of_mean = 0.0, 0.0
    for rate, piece in pieces:
        if _MAX_RATIO * rate < sample_rate:
            raise InputError(
                f"{name}: expected at least {sample_rate / _MAX_RATIO:g} samples per second, found {rate}"
            )
        if channel is not None and channel > piece.shape[1]:
            raise InputError(f"{name}: expected at least {channel} channels, found {piece.shape[1]}")
        chosen = piece if channel is None else piece[:, channel - 1 : channel]
        check_scale(chosen, name)
        samples = chosen.mean(axis=1) if chosen.shape[1] > 1 else chosen[:, 0]
        if chosen.shape[1] > 1:
            energy += float(np.vdot(chosen, chosen)) / chosen.shape[1]
            energy_of_mean += float(np.vdot(samples, samples))
        if rate != current and resample is not None:  # recordings joined end to end
            yield resample.resample_chunk(np.zeros(0, np.float32), last=True)
        if rate != current:
            current = rate
            resample = (
                None
                if rate == sample_rate
                else soxr.ResampleStream(rate, sample_rate, 1, "float32", quality="HQ")
            )
        yield samples if resample is None else resample.resample_chunk(samples)
    if resample is not None:
        yield resample.resample_chunk(np.zeros(0, np.float32), last=True)
    if energy_of_mean < _CANCELLED * energy:
        raise InputError(
            f"{name}: the channels cancel each other, so their mean is silent; to read one of them: "
            "--data.channel 1 (detect: --channel 1)"
        )


def check_scale(samples: np.ndarray, name: object) -> None:
    """Raise InputError if `samples`, of any shape, hold NaN, infinity, or values far beyond full scale."""
    if not samples.size:
        return
    peak = max(-samples.min(), samples.max())  # NaN if any sample is
    if not np.isfinite(peak):
        raise InputError(f"{name}: expected finite samples, found NaN or infinity")
    if peak > _MAX_PEAK:
        raise InputError(
            f"{name}: expected samples within ±1 (full scale), found {peak:g}; divide int16 by 32768"
        )


def pieces_of(path: str | Path) -> Pieces:
    """The recording at `path` with all its channels, in pieces of at most about 30 s; raises InputError."""
    return _in_blocks(_pieces(Path(path)))


def _pieces(path: Path) -> Pieces:
    check_file(path, "a recording")
    try:
        with open(path, "rb") as file:
            head = file.read(36)
            if not head:
                raise InputError(f"{path}: expected a recording, found an empty file")
            if is_wav(head[:12]):
                yield from _wav_pieces(file, path)
            elif _suits_libsndfile(file, head):
                yield from _sndfile_pieces(path)
            else:
                yield from decode_file(path)
    except OSError as error:
        raise InputError(f"{path}: expected a recording: {error.strerror or error}") from None


def _wav_pieces(file: BinaryIO, path: Path) -> Pieces:
    parts = wav_parts(file, path)
    if parts[0].encoding is None:
        if len(parts) > 1:
            raise InputError(
                f"{path}: expected one compressed recording, found {len(parts)} joined end to end"
            )
        yield from decode_file(path, ignore_length=parts[0].length != parts[0].promised)
        return
    for part in parts:
        if part.encoding is None:
            raise InputError(f"{path}: expected recordings of one encoding, found several")
        frames = min(_BLOCK_SECONDS * part.encoding.rate, _BLOCK // part.encoding.channels)
        file.seek(part.start)
        for start in range(0, part.length, frames * part.encoding.frame_bytes):
            data = file.read(min(frames * part.encoding.frame_bytes, part.length - start))
            yield part.encoding.rate, samples_of(data, part.encoding)


def _suits_libsndfile(file: BinaryIO, head: bytes) -> bool:
    """Whether libsndfile reads what FFmpeg does not: SPHERE, VOC, the end of Vorbis, FLAC without PyAV."""
    if head[:4] == b"fLaC":
        return not has("av")
    if head.startswith((b"NIST_1A", b"Creative Voice File")):  # TIMIT's SPHERE, VOC
        return True
    if head[28:35] != b"\x01vorbis":
        return False
    # libsndfile reads the first of several streams, side by side or joined end to end.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"OggS\0\2", 1) < 0


def _sndfile_pieces(path: Path) -> Pieces:
    import soundfile

    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # whose name may not be UTF-8
            count, frames = 0, min(_BLOCK_SECONDS * file.samplerate, _BLOCK // file.channels)
            while len(piece := file.read(frames, "float32", always_2d=True)):
                count += len(piece)
                yield file.samplerate, piece
            promised = file.frames
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected a recording: {first_line(error)}") from None
    if count < promised:
        raise InputError(f"{path}: cut off: expected {promised} samples, found {count}")


def _in_blocks(pieces: Pieces) -> Pieces:
    """`pieces` joined to blocks of about 30 s, of one rate and one number of channels each."""
    for (rate, channels), group in itertools.groupby(pieces, lambda piece: (piece[0], piece[1].shape[1])):
        most = min(_BLOCK_SECONDS * rate, _BLOCK // channels)
        held: list[np.ndarray] = []
        size = 0
        for _, piece in group:
            held.append(piece)
            size += len(piece)
            if size >= most:
                yield rate, _joined(held)
                held, size = [], 0
        if held:
            yield rate, _joined(held)


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)  # one, as from WAV, isn't copied
