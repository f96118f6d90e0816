"""Arrays from NumPy's files, which may be damaged or hostile: no pickles, and one line for what is wrong."""

from pathlib import Path

import numpy as np

from qkd_jax.errors import InputError, first_line

_MOST, _RATIO = 1 << 30, 100
"""Bytes that any archive may unpack to, and how many for each of its own where they are more."""


def read_npz(path: Path, what: str, **wanted: tuple[str, int]) -> list[np.ndarray]:
    """The arrays `wanted` in the archive at `path`, each with the kinds of dtype and the dimensions it may
    have.

    Raises InputError, which says that `what` was expected.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            most = max(_MOST, _RATIO * path.stat().st_size)
            if (size := sum(member.file_size for member in archive.zip.infolist())) > most:
                raise ValueError(f"at most {most} bytes, found {size}")
            return [_checked(name, archive[name], *form) for name, form in wanted.items()]
    except Exception as error:  # a damaged archive raises what it likes
        raise InputError(f"{path}: expected {what}: {first_line(error)}") from None


def read_npy(path: Path, what: str, kinds: str, dimensions: int) -> np.ndarray:
    """The one array in the file at `path`; raises InputError as `read_npz` does."""
    try:
        array = np.load(path, allow_pickle=False)
        return _checked("array", array, kinds, dimensions)
    except Exception as error:
        raise InputError(f"{path}: expected {what}: {first_line(error)}") from None


def _checked(name: str, array: object, kinds: str, dimensions: int) -> np.ndarray:
    if not isinstance(array, np.ndarray):  # np.load also opens archives
        raise ValueError(f"{name}: expected an array, found {type(array).__name__}")
    # Of nothing there may be any number, which takes no room in a file, but does in a list.
    if array.dtype.kind not in kinds or not array.dtype.itemsize or array.ndim != dimensions:
        raise ValueError(
            f"{name}: expected {dimensions} dimensions of kind {kinds}, found {array.dtype} {array.shape}"
        )
    return array
