"""Standard input: samples without a header, or a recording in any format that files may have."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qkd_jax.audio.decoder import decode_pipe
from qkd_jax.audio.encoding import Encoding, samples_of
from qkd_jax.audio.pipe import Pipe
from qkd_jax.audio.reading import mono
from qkd_jax.audio.wav_stream import starts_uncompressed, wav_stream
from qkd_jax.errors import InputError

NAME = "standard input"
_READ_BYTES = 1 << 16
_SIGNATURES = {
    0: (
        *b"RIFF RIFX RF64 BW64 FORM .snd caff fLaC OggS ID3 wvpk TTA1 tBaK MPCK MP+ #!AMR FRM8".split(),
        *(b"MAC ", b"DSD ", b"Creative Voice File", b"FLV\1", b"\0\0\1\xba", b"\x7f\xfe\x80\1"),
        *(
            b"\x1aE\xdf\xa3",
            b"riff\x2e\x91\xcf\x11",
            b"0&\xb2u\x8ef\xcf\x11",
            b"\x06\x0e\x2b\x34",
            b"NIST_1A",
        ),
        *(b"NIST_1A", b"\x1f\x8b\x08", b"\x89PNG", b"PK\3\4", b"%PDF", b"<html", b"<!DOCTYPE"),
    ),
    4: (*b"ftyp moov mdat wide free skip styp moof sidx".split(), b"\xf8\x72\x6f\xba"),
}
"""What containers begin with, and files that are no recordings, by its place."""
_KBITS = {
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates in kbit/s by version and layer of MPEG audio."""
_TS_PACKET = 188
_AC3_BYTES = 4096
"""More than a frame of AC-3 has."""


def stdin_blocks(
    file: Any,
    sample_rate: int,
    *,
    raw: Encoding | None = None,
    only_raw: bool = False,
    channel: int | None = None,
    ready: Callable[[], bool] = lambda: True,
) -> Iterator[np.ndarray]:
    """The sound that arrives at `file`, a raw binary stream, in blocks of float32 [samples] at `sample_rate`.

    A recording, recognized by its first bytes however they arrive, is decoded like a file.  Everything else
    is samples without a header, encoded as in `raw`: by default 16-bit little-endian integers, mono, at
    `sample_rate`.  Each block comes as soon as it can be read.  `ready` waits until there is more, or returns
    False to end the blocks.

    Raises InputError if the recording can't be read, if `raw` is given or the sound must be `only_raw` but a
    recording arrives, and as `reading.mono`.  Prints a line on stderr if the stream ends within a sample.
    """

    def read(count: int) -> bytes:
        return (file.read(count) or b"") if ready() else b""

    head = b""
    while (found := is_container(head)) is None and (data := read(_READ_BYTES)):
        head += data
    if not found:
        encoding = raw or Encoding("s16", sample_rate, 1)
        yield from mono(_raw_pieces(file, head, read, encoding), NAME, sample_rate, channel)
        return
    if raw or only_raw:
        asked = "--rate, --sample-format and --channels say" if raw else "--state needs"
        raise InputError(f"{NAME}: expected samples without a header, as {asked}, found a recording")
    pipe = Pipe(head, read)
    pieces = wav_stream(pipe, NAME) if starts_uncompressed(pipe, NAME) else decode_pipe(pipe, NAME)
    yield from mono(pieces, NAME, sample_rate, channel)


def _raw_pieces(
    file: Any, head: bytes, read: Callable[[int], bytes], encoding: Encoding
) -> Iterator[tuple[int, np.ndarray]]:
    """Samples as they arrive, whole frames in each piece."""
    size, data = encoding.frame_bytes, head
    while data or (data := read(_READ_BYTES)):
        # Completed before `ready` is asked again, so that a continued stream begins with a whole sample.
        while len(data) % size and (more := file.read(size - len(data) % size)):
            data += more
        if rest := len(data) % size:
            print(f"{NAME}: ended within a sample; ignored the last {rest} bytes", file=sys.stderr)
        yield encoding.rate, samples_of(data[: len(data) - rest], encoding)
        data = b""


def is_container(head: bytes) -> bool | None:
    """Whether a stream that begins with `head` is a recording; None if it takes more bytes to tell.

    >>> is_container(b"RI"), is_container(b"RIFF"), is_container(bytes(16))
    (None, True, False)
    """
    unsure = len(head) < 2
    for place, signatures in _SIGNATURES.items():
        part = head[place : place + 32]
        if any(part.startswith(signature) for signature in signatures):
            return True
        unsure |= any(signature.startswith(part) for signature in signatures)
    # Samples begin like a frame or a packet by chance, but not like several in a row.
    if frame := _mpeg_frame_bytes(head):
        if head[frame : frame + 1] == head[:1] and head[frame + 1 : frame + 2] == head[1:2]:
            return True
        unsure |= len(head) < frame + 2
    if head[:2] == b"\x0bw":  # AC-3
        if b"\x0bw" in head[2:_AC3_BYTES]:
            return True
        unsure |= len(head) < _AC3_BYTES
    if head[:1] == b"G":
        if head[: 4 * _TS_PACKET : _TS_PACKET] == b"GGGG":
            return True
        unsure |= len(head) <= 3 * _TS_PACKET
    return None if unsure else False


def _mpeg_frame_bytes(head: bytes) -> int:
    """The length of the frame of MPEG audio (MP2, MP3, AAC) that `head` begins with; 0 without one.

    If `head` is too short to tell, 8192 bytes, more than any frame has.
    """
    if len(head) < 2 or head[0] != 0xFF or head[1] < 0xE0:
        return 0
    layer, version = 4 - (head[1] >> 1 & 3), head[1] >> 3 & 3
    adts = head[1] & 0xF6 == 0xF0
    if not adts and (layer not in (2, 3) or version == 1):
        return 0
    if len(head) < 6:
        return 8192
    if adts:
        return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    kbits, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if kbits in (0, 15) or rate == 3:
        return 0
    hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    first = version == 3
    coefficient = 144 if first or layer == 2 else 72
    return coefficient * 1000 * _KBITS[1 if first else 2, layer][kbits - 1] // hertz + padding
