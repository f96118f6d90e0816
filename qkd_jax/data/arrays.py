"""Arrays from NumPy files, which may be damaged or hostile: no pickles, and one line per error."""

from pathlib import Path

import numpy as np

from qkd_jax.errors import InputError, first_line

_KINDS = {"U": "text", "f": "floats", "i": "integers", "iu": "integers", "fiu": "numbers"}
_MAX_BYTES, _MAX_RATIO = 1 << 30, 100
"""An archive may unpack to 1 GiB, or to 100 times its own size if that is more."""


def read_npz(path: Path, what: str, **wanted: tuple[str, int]) -> list[np.ndarray]:
    """The arrays `wanted` from the archive at `path`, given as kinds of dtype and number of dimensions.

    Raises InputError: expected `what`.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            most = max(_MAX_BYTES, _MAX_RATIO * path.stat().st_size)
            if (size := sum(member.file_size for member in archive.zip.infolist())) > most:
                raise ValueError(f"expected at most {most} bytes, found {size}")
            return [_checked(name, archive[name], *form) for name, form in wanted.items()]
    except Exception as error:  # a damaged archive may raise anything
        raise InputError(f"{path}: expected {what}: {first_line(error)}") from None


def read_npy(path: Path, what: str, kinds: str, dimensions: int) -> np.ndarray:
    """The one array in the file at `path`; raises InputError as `read_npz` does."""
    try:
        array = np.load(path, allow_pickle=False)
        return _checked("array", array, kinds, dimensions)
    except Exception as error:
        raise InputError(f"{path}: expected {what}: {first_line(error)}") from None


def _checked(name: str, array: object, kinds: str, dimensions: int) -> np.ndarray:
    if not isinstance(array, np.ndarray):  # np.load opens archives too
        raise ValueError(f"{name}: expected an array, found {type(array).__name__}")
    # A small file can hold any number of elements of size 0, but a list can't.
    if array.dtype.kind not in kinds or not array.dtype.itemsize or array.ndim != dimensions:
        raise ValueError(
            f"{name}: expected a {dimensions}-D array of {_KINDS[kinds]}, "
            f"found {array.dtype} of shape {array.shape}"
        )
    return array
