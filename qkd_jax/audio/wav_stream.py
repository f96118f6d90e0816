"""WAV files that arrive at a pipe, by the rules of `wav`."""

import struct
from collections.abc import Iterator

import numpy as np

from qkd_jax.audio.encoding import Encoding, samples_of
from qkd_jax.audio.pipe import Pipe
from qkd_jax.audio.wav import (
    MAX_ZEROS,
    ORDERS,
    format_of,
    is_name,
    is_placeholder,
    is_wav,
    no_data,
    no_format,
    promised_bytes,
    too_long,
)
from qkd_jax.errors import InputError

_READ_BYTES = 1 << 16
_MAX_CHUNK = 1 << 24
"""Most bytes of a chunk before the samples."""


def starts_uncompressed(pipe: Pipe, name: str) -> bool:
    """Whether a WAV file with uncompressed samples begins at `pipe`; everything is put back.

    Raises InputError, which names `name`, if its header makes no sense.
    """
    passed = bytearray(pipe.whole(12))
    encoding = _header(pipe, name, passed)[0] if is_wav(bytes(passed)) else None
    pipe.back(bytes(passed))
    return encoding is not None


def wav_stream(pipe: Pipe, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """The recordings that arrive at `pipe`, one or several: their rate, and float32 [samples, channels].

    The last one may end at any time.  Raises InputError, which names `name`, if a header makes no sense, or
    if bytes that are no chunks follow the samples.
    """
    more = True
    while more:
        encoding, promised, order = _header(pipe, name, bytearray(pipe.whole(12)))
        if encoding is None:
            raise InputError(f"{name}: expected recordings of one encoding, found several")
        count = 0
        while promised is None or count < promised:
            data = pipe.read(_READ_BYTES if promised is None else min(_READ_BYTES, promised - count))
            data += pipe.whole(-len(data) % encoding.frame_bytes)
            if not data:
                return
            count += len(data)
            yield encoding.rate, samples_of(data[: len(data) - len(data) % encoding.frame_bytes], encoding)
        more = _another_follows(pipe, name, count, order)


def _header(pipe: Pipe, name: str, passed: bytearray) -> tuple[Encoding | None, int | None, str]:
    """The encoding of the samples that come next, None for compressed ones; their bytes, None if unknown; the
    byte order.

    `passed` begins with the 12 bytes that were read; what is read is appended.
    """

    def read(count: int) -> bytes:
        passed.extend(data := pipe.whole(count))
        return data

    order, long, found = ORDERS[bytes(passed[:4])], 0, None
    while True:
        header = read(8)
        if header[:1] == b"\0":  # the pad byte of an odd chunk
            header = header[1:] + read(1)
        if len(header) < 8:
            raise InputError(no_data(name))
        chunk, promised = struct.unpack(f"{order}4sI", header)
        if chunk == b"data":
            break
        if promised > _MAX_CHUNK:
            raise InputError(f"{name}: expected chunks of at most {_MAX_CHUNK} bytes, found {promised}")
        content = read(promised)
        if chunk == b"fmt ":
            found = format_of(content, order)
        if chunk == b"ds64" and len(content) >= 16:
            long = struct.unpack("<Q", content[8:16])[0]
    if found is None:
        raise InputError(no_format(name))
    promised, exact = promised_bytes(promised, long)
    return found[0], None if is_placeholder(promised) and not exact else promised, order


def _another_follows(pipe: Pipe, name: str, length: int, order: str) -> bool:
    """Read the chunks after one of `length` bytes; whether they end where another recording begins."""
    samples = length
    while True:
        header = pipe.whole(8)
        if length % 2 and header[:1] == b"\0":  # the pad byte
            header = header[1:] + pipe.whole(1)
        if len(header) < 8 or header[:3] == b"TAG":
            pipe.skip()
            return False
        if header[:4] in ORDERS:
            pipe.back(header)
            return True
        if not is_name(header[:4]):
            rest = header + pipe.whole(MAX_ZEROS)
            more = len(rest) + pipe.skip()
            if more > MAX_ZEROS or any(rest):
                raise InputError(too_long(name, samples, more))
            return False
        length = struct.unpack(f"{order}I", header[4:])[0]
        pipe.skip(length)
