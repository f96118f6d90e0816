"""What is computed once for each recording, and kept in a file of its own."""

import functools
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from qkd_jax.data.clips import Clip
from qkd_jax.errors import InputError
from qkd_jax.system.devices import shares, stop_all_if_asked
from qkd_jax.system.files import whole_file
from qkd_jax.system.interrupt import asked_to_stop
from qkd_jax.system.progress import track

_HEADER = 128  # bytes of NumPy's for any matrix
_PIECE = 256  # recordings handed to the threads at once
_SHAPE = re.compile(rb"'shape': \(([0-9]{1,15}), ([0-9]{1,15})\)")

Places = Sequence[int] | np.ndarray


class Entries(Sequence[Path]):
    """The files of recordings in a cache, by place; 32 bytes each, for there may be millions."""

    def __init__(self, cache: Path, digests: np.ndarray):
        self.cache, self.digests = cache, digests

    def __len__(self) -> int:
        return len(self.digests)

    def __getitem__(self, index: Any) -> Any:
        digest = self.digests[index].decode()
        return self.cache / digest[:2] / f"{digest[2:]}.npy"


def cached(
    clips: Sequence[Clip],
    compute: Callable[[Path], np.ndarray],
    cache: Path,
    *,
    settings: str,
    width: int,
    title: str,
) -> tuple[Entries, dict[str, str]]:
    """The files in `cache` of what `compute` makes of each recording, on all cores where there is none.

    `compute` gives float32 [rows, width], at least one row, and raises InputError or OSError for
    a recording that can't be used.  Returns a file for each of `clips`, in NumPy's format, and what is
    wrong with those that can't be used and have none, by clip name.  A file is found by `settings`,
    which say all that the result depends on, and the recording's path, size and time of change; it is
    there whole or not at all.
    """
    entries = Entries(cache, np.zeros(len(clips), "S32"))
    reasons: dict[int, str] = {}

    def lacking(places: Places) -> list[int]:
        if asked_to_stop():
            return []
        for place in places:
            entries.digests[place] = _digest(clips[place].path, settings)
        return [place for place in places if place not in reasons and not _is_whole(entries[place], width)]

    def make(places: Places) -> list[str]:
        return [_make(clips[place].path, compute, entries[place]) for place in places]

    for share in shares():
        places = range(len(clips))[share]
        some = np.fromiter(_in_parallel(lacking, places, _PIECE), np.int64)
        if len(some):
            print(f"{title}: {len(some)} of {len(clips)} recordings to read", flush=True)
        for reason, place in zip(track(_in_parallel(make, some, 1), len(some), title), some):
            if reason:
                reasons[int(place)] = reason
            if asked_to_stop():
                break
        stop_all_if_asked()
    return entries, {clips[place].name: reasons[place] for place in sorted(reasons)}


def _digest(recording: Path, settings: str) -> str:
    try:
        status = recording.stat()
        identity = f"{status.st_size} {status.st_mtime_ns}"
    except (OSError, ValueError):
        identity = "not there"  # reading it will say so
    key = "\n".join([settings, str(recording.absolute()), identity])
    return hashlib.sha256(os.fsencode(key)).hexdigest()[:32]


@functools.lru_cache
def _header(rows: int, width: int) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    )
    return file.getvalue()


def _is_whole(entry: Path, width: int) -> bool:
    """False for what is missing, and for what a crash of the whole machine may leave.

    Its header, which may lie, is compared and not believed.
    """
    try:
        with open(entry, "rb") as file:
            found, size = file.read(_HEADER), os.fstat(file.fileno()).st_size
    except OSError:
        return False
    rows, rest = divmod(size - _HEADER, 4 * width)
    return rows > 0 and not rest and found == _header(rows, width)


def read_entry(entry: Path) -> np.ndarray:
    """What `compute` made, float32 [rows, width], mapped into memory; raises InputError if it is not whole.

    For any thread: `numpy.load` has Python's compiler read the header, which in 3.11 fails now and then
    where two threads do so at once.
    """
    try:
        with open(entry, "rb") as file:
            header = file.read(_HEADER)
        if (found := _SHAPE.search(header)) is None or header != _header(*map(int, found.groups())):
            raise ValueError("another header")
        return np.memmap(entry, np.float32, "r", _HEADER, tuple(map(int, found.groups())))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{entry}: expected what was computed of a recording, and is again without the file: {error}"
        ) from None


def _make(recording: Path, compute: Callable[[Path], np.ndarray], entry: Path) -> str:
    """Compute the entry of one recording; what is wrong with it, or the empty string."""
    try:
        if not recording.is_file():
            raise InputError(f"{recording}: not there")
        result = compute(recording)
    except (InputError, OSError) as error:
        return str(error)
    # Into a file itself, NumPy would not notice that the disk is full.
    buffer = io.BytesIO()
    np.save(buffer, result)
    with whole_file(entry) as file:
        file.write(buffer.getbuffer())
    return ""


def _in_parallel(work: Callable[[Places], Iterable[Any]], places: Places, size: int) -> Iterator[Any]:
    """What `work` gives for `places`, `size` of them at a time, in their order, on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            # Not all at once, so that two million clips do not wait in memory.
            for first in range(0, len(places), size * _PIECE):
                last = min(first + size * _PIECE, len(places))
                pieces = (places[start : min(start + size, last)] for start in range(first, last, size))
                for found in pool.map(work, pieces):
                    yield from found
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
