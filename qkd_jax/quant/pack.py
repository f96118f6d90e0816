"""Packing codes into bytes and back, in NumPy."""

import numpy as np

_MIN_BITS, _MAX_BITS = 2, 8


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack `codes` (integers in [0, 2^bits - 1], flattened) into uint8 [ceil(count · bits / 8)].

    The codes follow each other bit by bit, lowest bit first, so at 4 bits the first code is the low half of
    the first byte (the layout of ONNX's INT4).  Unused bits at the end are 0.  Raises ValueError for bits
    outside 2 to 8 and for codes out of range.

    >>> pack(np.array([1, 2, 15]), 4).tolist()
    [33, 15]
    """
    _check(bits)
    flat = np.asarray(codes).reshape(-1)
    if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < 2**bits:
        raise ValueError(f"codes: expected 0 to {2**bits - 1}, got {flat.min()} to {flat.max()}")
    each = np.unpackbits(flat.astype(np.uint8)[:, None], axis=1, bitorder="little", count=bits)
    return np.packbits(each, bitorder="little")


def unpack(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Recover the `count` codes, uint8 [count], that `pack` turned into `data` (uint8).

    Raises ValueError for bits outside 2 to 8 and for `data` of the wrong length.

    >>> unpack(np.array([33, 15], np.uint8), 4, 3).tolist()
    [1, 2, 15]
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
