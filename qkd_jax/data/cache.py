"""A cache of arrays computed from recordings: one file for each recording."""

import atexit
import functools
import hashlib
import io
import os
import re
import tempfile
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

_HEADER = 128  # bytes of NumPy's header for any matrix
_CHUNK = 256  # recordings handed to the threads at once
_SHAPE = re.compile(rb"'shape': \(([0-9]{1,15}), ([0-9]{1,15})\)")

Places = Sequence[int] | np.ndarray


class Entries(Sequence[Path]):
    """Paths of cache entries by index, 32 bytes each in memory, since there may be millions.

    If the cache is read-only, entries that it lacks are in a temporary folder.
    """

    def __init__(self, cache: Path, digests: np.ndarray):
        self.cache, self.digests = cache, digests
        self.folder = writable(cache)

    def __len__(self) -> int:
        return len(self.digests)

    def __getitem__(self, index: Any) -> Any:
        digest = self.digests[index].decode()
        return place_in(self.cache, self.folder, f"{digest[:2]}/{digest[2:]}.npy")


def place_in(cache: Path, folder: Path, name: str) -> Path:
    """The path of `name`: in `cache` if it is there, else in `folder`, the writable one."""
    in_cache = cache / name
    return in_cache if folder == cache or os.path.exists(in_cache) else folder / name


def writable(cache: Path) -> Path:
    """`cache`, or if that is read-only, a temporary folder of this process."""
    return cache if os.access(existing(cache), os.W_OK | os.X_OK) else _temporary_folder()


def existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if os.path.exists(each))


@functools.cache
def _temporary_folder() -> Path:
    """One for this process, removed when it ends."""
    folder = tempfile.TemporaryDirectory(prefix="qkd_jax-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def cached(
    clips: Sequence[Clip],
    compute: Callable[[Clip], np.ndarray],
    cache: Path,
    *,
    settings: str,
    width: int,
    title: str,
) -> tuple[Entries, dict[str, str]]:
    """The cache entries of `clips`; missing ones are computed, on all cores.

    `compute` maps the whole recording of a clip to float32 [rows, width], at least one row, and raises
    InputError or OSError if it can't be used.  Returns the entries, .npy files, and by clip
    name the reasons why others can't be used and have none.  An entry is identified by `settings`, which must
    name everything that the result depends on, and by the recording's path, size and modification time; it is
    written whole or not at all.
    """
    entries = Entries(cache, np.zeros(len(clips), "S32"))
    reasons: dict[bytes, str] = {}  # by digest, since parts of one recording share its entry

    def lacking(places: Places) -> list[int]:
        if asked_to_stop():
            return []
        for place in places:
            entries.digests[place] = digest(clips[place].path, settings)
        return [
            place
            for place in places
            if entries.digests[place] not in reasons and not _is_whole(entries[place], width)
        ]

    def make(places: Places) -> list[str]:
        return [_make(clips[place], compute, entries[place]) for place in places]

    for share in shares():
        places = range(len(clips))[share]
        some = np.fromiter(in_parallel(lacking, places, _CHUNK), np.int64)
        some = some[np.sort(np.unique(entries.digests[some], return_index=True)[1])]
        if len(some):
            print(
                f"{title}: computing {len(some)} of {len(clips)} recordings (others are cached)", flush=True
            )
            if entries.folder != cache:
                print(f"{title}: not kept after this command, since {cache} is read-only", flush=True)
        for reason, place in zip(track(in_parallel(make, some, 1), len(some), title), some):
            if reason:
                reasons[entries.digests[place]] = reason
            if asked_to_stop():
                break
        stop_all_if_asked()
    bad = {
        clip.name: reasons[each]
        for clip, each in zip(clips if reasons else (), entries.digests)
        if each in reasons
    }
    return entries, bad


def digest(recording: Path, settings: str) -> str:
    """32 hexadecimal digits for `settings` and a recording's path, size and modification time."""
    try:
        status = recording.stat()
        identity = f"{status.st_size} {status.st_mtime_ns}"
    except (OSError, ValueError):
        identity = "not there"  # reading it reports the fault
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
    """Whether the file exists and is undamaged; a crash of the machine may leave a damaged one.

    The header is compared with the expected one, never trusted.
    """
    try:
        with open(entry, "rb") as file:
            header, size = file.read(_HEADER), os.fstat(file.fileno()).st_size
    except OSError:
        return False
    rows, rest = divmod(size - _HEADER, 4 * width)
    return rows > 0 and not rest and header == _header(rows, width)


def read_entry(entry: Path) -> np.ndarray:
    """An entry's array, float32 [rows, width], mapped into memory; raises InputError if it is damaged.

    Safe in any thread, unlike `numpy.load`, which runs Python's compiler on the header: in Python 3.11 that
    sometimes fails in two threads at once.
    """
    try:
        with open(entry, "rb") as file:
            header = file.read(_HEADER)
        match = _SHAPE.search(header)
        shape = tuple(map(int, match.groups())) if match else ()
        if not shape or header != _header(*shape):
            raise ValueError("found a damaged header")
        return np.memmap(entry, np.float32, "r", _HEADER, shape)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{entry}: expected a cached array, {error}; delete the file to recompute it"
        ) from None


def count_rows(entry: Path, width: int) -> int:
    """The rows of an entry's array, by the file's size."""
    return (os.stat(entry).st_size - _HEADER) // (4 * width)


def _make(clip: Clip, compute: Callable[[Clip], np.ndarray], entry: Path) -> str:
    """Compute and write the entry of one recording; returns why it can't be used, or the empty string."""
    try:
        result = compute(clip)
    except (InputError, OSError) as error:
        return str(error)
    # Not np.save(file): writing directly to a file, NumPy does not notice a full disk.
    with whole_file(entry) as file:
        file.write(_header(*result.shape))
        file.write(np.ascontiguousarray(result, "<f4"))
    return ""


def in_parallel(work: Callable[[Places], Iterable[Any]], places: Places, size: int) -> Iterator[Any]:
    """The results of `work` for `places`, `size` at a time, in order, on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            # In chunks, so that two million clips are not queued in memory.
            for first in range(0, len(places), size * _CHUNK):
                last = min(first + size * _CHUNK, len(places))
                pieces = (places[start : min(start + size, last)] for start in range(first, last, size))
                for results in pool.map(work, pieces):
                    yield from results
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
