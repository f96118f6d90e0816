"""Codes to bytes and back, in NumPy: what a file holds."""

import numpy as np

_MIN_BITS, _MAX_BITS = 2, 8


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """`codes` (integers in [0, 2^bits - 1], flattened) as uint8 [ceil(count · bits / 8)].

    Codes follow each other bit by bit, the lowest bit first, so that at 4 bits the first code
    is the low half of the first byte (ONNX's INT4 layout).  Bits left over are 0.  Raises
    ValueError for bits outside 2 to 8 or codes outside their range.
    """
    _check(bits)
    flat = np.asarray(codes).reshape(-1)
    if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < 2**bits:
        raise ValueError(f"codes: expected 0 to {2**bits - 1}, got {flat.min()} to {flat.max()}")
    each = np.unpackbits(flat.astype(np.uint8)[:, None], axis=1, bitorder="little", count=bits)
    return np.packbits(each, bitorder="little")


def unpack(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The `count` codes, uint8 [count], that `pack` made `data` (uint8) of.

    Raises ValueError for bits outside 2 to 8 or `data` of another length.
    """
    _check(bits)
    needed = -(-count * bits // 8)
    if data.shape != (needed,):
        raise ValueError(f"data: expected {needed} bytes for {count} codes of {bits} bits, got {data.shape}")
    each = np.unpackbits(data, bitorder="little", count=count * bits).reshape(count, bits)
    return np.packbits(each, axis=1, bitorder="little").reshape(count)


def _check(bits: int) -> None:
    if not _MIN_BITS <= bits <= _MAX_BITS:
        raise ValueError(f"bits: expected {_MIN_BITS} to {_MAX_BITS}, got {bits}")
