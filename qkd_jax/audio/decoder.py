"""Recordings in any format that FFmpeg decodes, by PyAV: MP3, M4A, Opus, WebM, WMA, a video's sound track.

FFmpeg would also follow playlists and URLs.  Here it opens local files alone, in formats that don't name
other files.
"""

import mmap
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qkd_jax.audio.encoding import to_float
from qkd_jax.audio.pipe import Pipe
from qkd_jax.audio.wav import check_aiff, is_placeholder, read_at
from qkd_jax.errors import InputError
from qkd_jax.system.libraries import optional

_DEMUXERS = """
aac ac3 aiff amr ape asf au avi caf dsf eac3 flac flv matroska mov mp3 mpc mpc8 mpeg mpegts ogg tak tta w64
wav wv
"""
_OPTIONS = {"format_whitelist": ",".join(_DEMUXERS.split()), "protocol_whitelist": "file"}
_COUNTED = {"aiff", "au", "flac", "tta", "w64", "wv"}
"""Formats whose header gives the number of samples."""
_TIMED = {"ape", "avi", "caf", "dsf", "mov", "tak", "wav"}
"""Formats whose header gives the length, with or without the encoder's padding; for others FFmpeg guesses."""
_END_TIMED = {"avi", "matroska", "mov"}
"""Formats that give the time of the end instead: sound may begin late."""
_PADDING_SECONDS = 0.1
_PLAIN = {"au", "caf", "w64"}
"""Formats of uncompressed samples."""
_OTHER_BYTES = 1 << 16
"""So many bytes of a plain file may be something else."""
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_CLOCK = re.compile(r"([0-9]{1,4}):([0-9]{2}):([0-9]{2}\.?[0-9]*)")
_PROBED_BYTES = 1 << 16
"""Bytes of a pipe from which FFmpeg finds the format: a live stream is heard that much later."""


def decode_file(path: Path, *, ignore_length: bool = False) -> Iterator[tuple[int, np.ndarray]]:
    """The recording at `path`, piece by piece: its rate, and float32 [samples, channels], full scale 1.

    In a video, the first sound track is read.  `ignore_length` reads a WAV file to its end, whatever length
    its header gives.

    Raises InputError if PyAV isn't installed or FFmpeg can't read the file, and, at the latest after the last
    piece, if the recording is cut off or damaged.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if (promised := _promised_bytes(file)) > size + 1:  # a pad byte may be missing
            raise InputError(f"{path}: cut off: expected {promised} bytes, found {size}")
        mp3_samples = _mp3_samples(file)
        if _is_joined(file):
            raise InputError(f"{path}: expected one recording, found several joined end to end")
        if read_at(file, 0, 4) == b"FORM":
            check_aiff(file, path)
    options = {"ignore_length": "1"} if ignore_length else {}
    # A prefix: the path itself might look like a URL.
    yield from _decode(f"file:{path}", path, options, size, mp3_samples)


def decode_pipe(pipe: Pipe, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """The recording that arrives at `pipe`, as `decode_file` gives it, except that it may end at any time."""
    yield from _decode(pipe, name, {"probesize": str(_PROBED_BYTES)})


def _decode(
    source: Any, name: object, options: dict[str, str], size: int = 0, mp3_samples: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
    """The pieces of the recording at `source`, the URL of a file of `size` bytes or a Pipe."""
    av = optional("av", name, "pip install av")
    seconds, begin, read_bytes, damaged = 0.0, None, 0, list[float]()
    try:
        with av.open(source, options=_OPTIONS | options, metadata_errors="replace") as container:
            if not container.streams.audio:
                raise InputError(f"{name}: expected a recording, found no sound in it")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise InputError(f"{name}: expected a recording, found one of an unknown codec")
            kind = container.format.name.split(",")[0]
            rate, channels = max(stream.codec_context.sample_rate, 1), stream.codec_context.channels
            # Threads within a decoder only cost time: recordings are read side by side.
            stream.codec_context.thread_count = 1
            if stream.codec_context.name in ("flac", "wavpack"):
                stream.codec_context.options = {"err_detect": "crccheck+explode"}
            for packet in container.demux(stream):
                read_bytes += packet.size
                if begin is None and packet.pts is not None:
                    begin = float(packet.pts * packet.time_base)
                try:
                    frames = _frames(av, packet)
                except av.error.InvalidDataError:
                    damaged.append(seconds)
                    continue
                for frame in frames:
                    found = frame.sample_rate, frame.layout.nb_channels
                    # In joined FLAC files, FFmpeg then decodes some frames twice.
                    if kind == "flac" and found != (rate, channels):
                        raise InputError(f"{name}: expected one rate and number of channels, found several")
                    # More channels would crash PyAV.
                    if not frame.sample_rate or found[1] > max(channels, 2):
                        raise InputError(
                            f"{name}: damaged: expected {rate} Hz and {channels} channels, found {found}"
                        )
                    samples = _samples(av, frame)
                    seconds += len(samples) / frame.sample_rate
                    yield frame.sample_rate, samples
            promised = mp3_samples / rate if kind == "mp3" else _promised_seconds(kind, container, stream)
            if kind in _END_TIMED:
                promised -= max(begin or 0.0, 0.0)
    except IndexError:  # PyAV, where a stream of MPEG-TS comes late
        raise InputError(f"{name}: expected a recording, found streams that can't be told apart") from None
    except av.error.FFmpegError as error:
        if isinstance(source, Pipe) and seconds and not source.read(1):
            return  # a stream may end anywhere
        # Files such as M4A may have their index at their end.
        why = "name the file instead, if it is one" if isinstance(source, Pipe) else "is it cut off?"
        what = f"none that FFmpeg can read ({why}): {error.strerror}"
        if isinstance(error, av.error.ArgumentError) and not read_bytes:
            what = "another format"
        raise InputError(f"{name}: expected a recording, found {what}") from None
    piped = isinstance(source, Pipe)
    if not piped and promised - seconds > (1.5 / rate if kind in _COUNTED else _PADDING_SECONDS):
        raise InputError(f"{name}: cut off: expected {promised:.2f} s, found {seconds:.2f} s")
    # The last packet of a stream that was stopped may be incomplete.
    if len(damaged) > 1 or (damaged and damaged[0] < seconds):
        raise InputError(
            f"{name}: damaged: {len(damaged)} packets can't be decoded, the first at {damaged[0]:.2f} s"
        )
    if piped:
        size = source.passed + source.skip()
    if kind in _PLAIN and size - read_bytes > _OTHER_BYTES:
        raise InputError(
            f"{name}: expected samples in most of {size} bytes, found {read_bytes}, as the header says"
        )


def _frames(av: Any, packet: Any) -> list[Any]:
    """The frames in a packet; in MP3 files joined end to end, it may begin with the tag between them."""
    try:
        return packet.decode()
    except av.error.InvalidDataError:
        data = bytes(packet)
        rest = data[_id3_bytes(data) :]
        if len(rest) in (0, len(data)):
            raise
        return packet.stream.codec_context.decode(av.Packet(rest))


def _samples(av: Any, frame: Any) -> np.ndarray:
    """The samples of a decoded frame, float32 [samples, channels]."""
    if frame.format.name.startswith("s64"):  # which NumPy does not get
        [frame] = av.AudioResampler("dbl", frame.layout, frame.sample_rate).resample(frame)
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    return to_float(values)


def _promised_seconds(kind: str, container: Any, stream: Any) -> float:
    """The length that the header gives, 0 if it gives none."""
    if kind == "matroska" and (found := _CLOCK.fullmatch(stream.metadata.get("DURATION", ""))):
        return sum(60**place * float(part) for place, part in enumerate(reversed(found.groups())))
    if kind == "matroska" and len(container.streams) == 1:
        return (container.duration or 0) / 1e6
    if kind in _COUNTED | _TIMED and stream.duration:
        return float(stream.duration * stream.time_base)
    return 0.0


def _is_joined(file: BinaryIO) -> bool:
    """Whether the head of an M4A, WMA, TTA or AU file comes again: FFmpeg reads the first recording."""
    head = read_at(file, 0, 16)
    if head[4:8] != b"ftyp" and head[:4] not in (b"0&\xb2u", b"TTA1", b".snd"):
        return False
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(head[:12], 12) > 0


def _promised_bytes(file: BinaryIO) -> int:
    """The size of an AIFF, ASF, AU, AVI, CAF or W64 file by its header; 0 if unknown, or for other files."""
    head = read_at(file, 0, 24)
    if len(head) < 24:
        return 0
    kind, size = struct.unpack(">4sI", head[:8])
    if kind == b"RIFF":
        (size,) = struct.unpack("<I", head[4:8])
    if kind in (b"FORM", b"RIFF"):
        return 0 if is_placeholder(size) else size + 8
    if kind == b".snd":
        (data,) = struct.unpack(">I", head[8:12])
        return 0 if is_placeholder(data) else size + data
    if kind == b"riff":
        (size,) = struct.unpack("<Q", head[16:24])
        return size if size < 1 << 62 else 0
    if kind == b"0&\xb2u":
        properties = read_at(file, 0, 4096)
        at = properties.find(_ASF_PROPERTIES)
        return int.from_bytes(properties[at + 40 : at + 48], "little") if at > 0 else 0
    at = 8
    while kind == b"caff" and len(chunk := read_at(file, at, 12)) == 12:
        name, size = struct.unpack(">4sq", chunk)
        if name == b"data" or size < 0:
            return at + 12 + size if size > 0 else 0
        at += 12 + size
    return 0


def _mp3_samples(file: BinaryIO) -> int:
    """The samples that the first frame of an MP3 file, LAME's Xing or Info tag, promises; 0 without a tag."""
    frame = read_at(file, _id3_bytes(read_at(file, 0, 10)), 512)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if frame[:1] != b"\xff" or at < 0 or len(frame) < at + 144:
        return 0
    flags, frames = struct.unpack(">II", frame[at + 4 : at + 12])
    padding = (
        int.from_bytes(frame[at + 141 : at + 144]) if frame[at + 120 : at + 122] in (b"LA", b"La") else 0
    )
    samples = frames * (1152 if frame[1] >> 3 & 3 == 3 else 576)
    return samples - (padding >> 12) - (padding & 0xFFF) if flags & 1 else 0


def _id3_bytes(head: bytes) -> int:
    """The bytes of the ID3 tag that `head` begins with, 0 without one.

    >>> _id3_bytes(b"ID3\\x04\\x00\\x00\\x00\\x00\\x01\\x00")
    138
    """
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(head[6:10])))
