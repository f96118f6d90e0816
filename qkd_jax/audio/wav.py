"""Where the samples of a WAV file lie: its header may promise more or fewer bytes than there are.

Sizes are wrong in files over 4 GiB (taken modulo 2^32), from programs that write to a pipe or that were
killed (0, or a placeholder near 2^31 or 2^32), and in copies that were cut off.  libsndfile believes them;
FFmpeg believes them, or takes all to the end of the file for samples, later chunks included.
"""

import os
import struct
from typing import BinaryIO, NamedTuple

from qkd_jax.audio.encoding import Encoding
from qkd_jax.config.fields import SampleFormat
from qkd_jax.errors import InputError

ORDERS = {b"RIFF": "<", b"RF64": "<", b"BW64": "<", b"RIFX": ">"}
"""Byte order per kind of file."""
_FORMATS: dict[tuple[int, int], SampleFormat] = {
    (1, 1): "u8",
    (1, 2): "s16",
    (1, 3): "s24",
    (1, 4): "s32",
    (3, 4): "f32",
    (3, 8): "f64",
}
"""By tag (1 integers, 3 floats) and bytes per sample."""
_EXTENSIBLE = 0xFFFE
MAX_ZEROS = 4096
"""Most zeros after the last chunk that count as filling."""
_METADATA = (
    b"LIST",
    b"ID3 ",
    b"id3 ",
    b"bext",
    b"iXML",
    b"cue ",
    b"fact",
    b"smpl",
    b"_PMX",
    b"JUNK",
    b"PAD ",
)
"""Chunks that may be cut off after the samples, which are then whole."""


class Part(NamedTuple):
    """A recording in a WAV file: its samples begin at byte `start` and take `length` bytes."""

    encoding: Encoding | None
    """None for compressed samples."""
    start: int
    length: int
    promised: int
    """Their length as the header gives it."""


def is_placeholder(size: int) -> bool:
    """Whether a size of 32 bits is one that programs write before they know it: 0, or about 2^31 or 2^32.

    >>> is_placeholder(0x7FFFF000), is_placeholder(3_000_000_000)
    (True, False)
    """
    return size == 0 or 0x7FFF0000 <= size <= 0x80000000 or size >= 0xFFFF0000


def is_wav(head: bytes) -> bool:
    """Whether a file that begins with these 12 bytes is a WAV file.

    >>> is_wav(b"RIFF\\xff\\xff\\xff\\xffWAVE")
    True
    """
    return head[:4] in ORDERS and head[8:12] == b"WAVE"


def wav_parts(file: BinaryIO, name: object) -> list[Part]:
    """The recordings in an open WAV file: one, or several joined end to end.

    Raises InputError, which names `name`, if the file is cut off, if the header is not that of a WAV file, or
    if bytes that are no chunks follow the samples.
    """
    size = file.seek(0, os.SEEK_END)
    parts, position = [], 0
    while position < size:
        part, position = _part(file, position, size, name)
        parts.append(part)
    return parts


def _part(file: BinaryIO, position: int, size: int, name: object) -> tuple[Part, int]:
    """The recording whose header begins at `position`, and the position after its last chunk."""
    head = read_at(file, position, 12)
    if not is_wav(head):
        raise InputError(f"{name}: expected a WAV file at byte {position}, found {head!r}")
    order, at, long, found = ORDERS[head[:4]], position + 12, 0, None
    while True:
        header = read_at(file, at, 8)
        if len(header) < 8:
            raise InputError(no_data(name))
        chunk, promised = struct.unpack(f"{order}4sI", header)
        at += 8
        if chunk == b"data":
            break
        content = read_at(file, at, min(promised, 64))
        if chunk == b"fmt ":
            found = format_of(content, order)
        if chunk == b"ds64" and len(content) >= 16:
            long = struct.unpack("<Q", content[8:16])[0]
        at = _next_chunk(file, at + promised, promised)
    if found is None:
        raise InputError(no_format(name))
    encoding, frame_bytes = found
    if encoding is None and order == ">":  # FFmpeg takes its samples for little-endian
        raise InputError(f"{name}: expected uncompressed samples in a RIFX file, found compressed ones")
    promised, exact = promised_bytes(promised, long)
    length, end = _true_length(file, at, promised, size, order, exact, name)
    return Part(encoding, at, length - length % frame_bytes, promised), end


def format_of(content: bytes, order: str) -> tuple[Encoding | None, int] | None:
    """The encoding of the samples in a chunk 'fmt ', and the bytes per frame; None if it makes no sense."""
    if len(content) < 16:
        return None
    tag, channels, rate, _, frame_bytes, _ = struct.unpack(f"{order}HHIIHH", content[:16])
    if tag == _EXTENSIBLE and len(content) >= 26:
        (tag,) = struct.unpack(f"{order}H", content[24:26])
    if not (channels and rate and frame_bytes):
        return None
    known = _FORMATS.get((tag, frame_bytes // channels)) if frame_bytes % channels == 0 else None
    if not known:
        return None, 1
    return Encoding(known, rate, channels, big_endian=order == ">"), frame_bytes


def _true_length(
    file: BinaryIO, start: int, promised: int, size: int, order: str, exact: bool, name: object
) -> tuple[int, int]:
    """The bytes of samples from `start` on, and the position after the recording's last chunk.

    `exact` if `promised` has 64 bits, so that it can't be a placeholder.
    """
    room = size - start
    unknown = is_placeholder(promised) and not exact
    if promised == 0 and not is_name(read_at(file, start, 4)):
        return room, size
    if room < promised and not unknown:
        raise InputError(f"{name}: cut off: expected {promised} bytes of samples, found {room}")
    # Sizes of 32 bits are modulo 2^32 in larger files.
    for length in range(promised, room + 1, 1 << 32):
        if end := _after_chunks(file, start + length, length, size, order):
            return length, end
    if unknown:
        return room, size
    raise InputError(too_long(name, promised, room - promised))


def promised_bytes(size: int, long: int) -> tuple[int, bool]:
    """The bytes of samples that a header promises, and whether it does so in 64 bits: then they are exact.

    `size` is that of the chunk 'data', `long` the one in the chunk 'ds64', 0 without it.
    """
    exact = size == 0xFFFFFFFF and 0 < long < 1 << 63
    return (long, True) if exact else (size, False)


def no_data(name: object) -> str:
    """The error for a file that ends before its samples."""
    return f"{name}: cut off: expected a chunk 'data' with the samples, found none"


def no_format(name: object) -> str:
    """The error for samples of an unknown format."""
    return f"{name}: expected rate and channels in a chunk 'fmt ' before the samples, found none"


def too_long(name: object, promised: int, more: int) -> str:
    """The error for samples that are followed by bytes which are no chunks."""
    return (
        f"{name}: expected {promised} bytes of samples, as the header says, found {more} more "
        "bytes that are no chunks; if they are samples: ffmpeg -ignore_length 1 -i IN.wav OUT.wav, if not: "
        "ffmpeg -i IN.wav OUT.wav"
    )


def check_aiff(file: BinaryIO, name: object) -> None:
    """Raise InputError if bytes that are no chunks follow the samples of an AIFF file."""
    size, at = file.seek(0, os.SEEK_END), 12
    while len(header := read_at(file, at, 8)) == 8:
        chunk, length = struct.unpack(">4sI", header)
        at += 8 + length
        if chunk == b"SSND":
            if at < size and _after_chunks(file, at, length, size, ">") is None:
                raise InputError(too_long(name, length, size - at))
            return
        at = _next_chunk(file, at, length)


def _after_chunks(file: BinaryIO, at: int, length: int, size: int, order: str) -> int | None:
    """The position after the chunks at `at`, which follow a chunk of `length` bytes; None if they are none.

    That position is the end of the file, or the beginning of another recording.
    """
    while True:
        at = _next_chunk(file, at, length)
        header = read_at(file, at, 8)
        if len(header) < 8 or header[:3] == b"TAG":  # an ID3 tag of version 1
            return size
        if header[:4] in ORDERS:
            return at
        if not is_name(header[:4]):
            rest = read_at(file, at, MAX_ZEROS)
            return size if at + len(rest) == size and not any(rest) else None
        length = struct.unpack(f"{order}I", header[4:])[0]
        at += 8 + length
        if at > size + 1:
            return size if header[:4] in _METADATA else None


def _next_chunk(file: BinaryIO, end: int, length: int) -> int:
    """Where the chunk after one of `length` bytes begins: after a pad byte if `length` is odd.

    Some programs don't write the pad byte.
    """
    padded = end + length % 2
    return end if is_name(read_at(file, end, 4)) and not is_name(read_at(file, padded, 4)) else padded


def is_name(name: bytes) -> bool:
    """Whether four bytes may be the name of a chunk."""
    return len(name) == 4 and all(0x20 <= byte < 0x7F for byte in name)


def read_at(file: BinaryIO, at: int, count: int) -> bytes:
    """At most `count` bytes of an open file from position `at` on."""
    file.seek(at)
    return file.read(count)
