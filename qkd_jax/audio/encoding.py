"""Encodings of uncompressed samples, and their values."""

from typing import NamedTuple

import numpy as np

from qkd_jax.config.fields import SampleFormat


class Encoding(NamedTuple):
    """How a stream of bytes holds samples; frames hold one sample of each channel."""

    format: SampleFormat
    rate: int
    channels: int
    big_endian: bool = False

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame."""
        return int(self.format[1:]) // 8 * self.channels


def samples_of(data: bytes, encoding: Encoding) -> np.ndarray:
    """The samples in `data`, whole frames, as float32 [frames, channels]; the full scale of integers is 1.

    >>> samples_of(b"\\x00\\x40\\x00\\x80", Encoding("s16", 16_000, 2))
    array([[ 0.5, -1. ]], dtype=float32)
    """
    kind, bits = encoding.format[0], int(encoding.format[1:])
    order = ">" if encoding.big_endian else "<"
    if bits == 24:  # the upper bytes of 32 bits
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, slice(0, 3) if encoding.big_endian else slice(1, 4)] = np.frombuffer(data, "u1").reshape(
            -1, 3
        )
        values, bits = wide.view(f"{order}i4"), 32
    else:
        values = np.frombuffer(data, f"{order}{kind.replace('s', 'i')}{bits // 8}")
    with np.errstate(over="ignore"):  # a float64 may be too large; readers refuse infinity
        samples = values.astype(np.float32)
    if kind == "u":
        samples -= 2.0 ** (bits - 1)
    if kind != "f":
        samples *= 2.0 ** (1 - bits)
    return samples.reshape(-1, encoding.channels)
