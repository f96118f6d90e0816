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
    kind, size = encoding.format[0].replace("s", "i"), encoding.frame_bytes // encoding.channels
    order = ">" if encoding.big_endian else "<"
    if size == 3:  # the upper bytes of 32 bits
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, slice(0, 3) if encoding.big_endian else slice(1, 4)] = np.frombuffer(data, "u1").reshape(
            -1, 3
        )
        data, size = wide.tobytes(), 4
    return to_float(np.frombuffer(data, f"{order}{kind}{size}")).reshape(-1, encoding.channels)


def to_float(values: np.ndarray) -> np.ndarray:
    """Samples of any type as float32; the full scale of integers becomes 1, floats stay as they are.

    >>> to_float(np.uint8([128, 255]))
    array([0.       , 0.9921875], dtype=float32)
    """
    with np.errstate(over="ignore"):  # readers refuse infinity
        samples = values.astype(np.float32)
    half = 2.0 ** (8 * values.itemsize - 1)
    if values.dtype.kind == "u":
        samples -= half
    return samples if values.dtype.kind == "f" else samples / np.float32(half)
