"""What is computed once for each recording, and kept in a file of its own."""

import hashlib
import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from qkd_jax.config import InputError
from qkd_jax.data.clips import Clip
from qkd_jax.files import whole_file
from qkd_jax.mesh import shares, stop_all_if_asked
from qkd_jax.progress import track
from qkd_jax.stop import asked_to_stop


def cached(
    clips: Sequence[Clip],
    compute: Callable[[Path], np.ndarray],
    cache: Path,
    *,
    settings: str,
    width: int,
    title: str,
) -> tuple[dict[str, Path], dict[str, str]]:
    """The file in `cache` of what `compute` makes of each recording, on all cores where there is none.

    `compute` gives float32 [rows, width], at least one row, and raises InputError or OSError for
    a recording that can't be used.  Returns the files, in NumPy's format, and for recordings that
    can't be used what is wrong with them, both by clip name.  A file is found by `settings`, which
    say all that the result depends on, and the recording's path, size and time of change; it is
    there whole or not at all.
    """
    entries = {clip.name: cache / _entry(clip.path, settings) for clip in clips}
    reasons: dict[str, str] = {}
    for share in shares():
        lacking = [
            clip
            for clip in clips[share]
            if clip.name not in reasons and not _is_whole(entries[clip.name], width)
        ]
        if lacking:
            print(f"{title}: {len(lacking)} of {len(clips)} recordings to read", flush=True)
        for clip, reason in track(_in_parallel(lacking, compute, entries), len(lacking), title):
            if asked_to_stop():
                break
            reasons[clip.name] = reason
        stop_all_if_asked()
    bad = {clip.name: reasons[clip.name] for clip in clips if reasons.get(clip.name)}
    return {name: entry for name, entry in entries.items() if name not in bad}, bad


def _entry(recording: Path, settings: str) -> Path:
    try:
        status = recording.stat()
        identity = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        identity = "not there"  # reading it will say so
    key = "\n".join([settings, str(recording.absolute()), identity])
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:32]
    return Path(digest[:2], f"{digest[2:]}.npy")


def _is_whole(entry: Path, width: int) -> bool:
    """False for what is missing, and for what a crash of the whole machine may leave."""
    try:
        kept = np.load(entry, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return kept.dtype == np.float32 and kept.shape[1:] == (width,) and len(kept) > 0


def _in_parallel(
    clips: Sequence[Clip], compute: Callable[[Path], np.ndarray], entries: Mapping[str, Path]
) -> Iterator[tuple[Clip, str]]:
    """Compute the entries of `clips`; yields each with what is wrong with it, or the empty string."""

    def one(clip: Clip) -> str:
        try:
            if not clip.path.is_file():
                raise InputError(f"{clip.path}: not there")
            result = compute(clip.path)
        except (InputError, OSError) as error:
            return str(error)
        # Into a file itself, NumPy would not notice that the disk is full.
        buffer = io.BytesIO()
        np.save(buffer, result)
        with whole_file(entries[clip.name]) as file:
            file.write(buffer.getbuffer())
        return ""

    # Not all at once, so that two million clips do not wait in memory.
    some = [clips[start : start + 256] for start in range(0, len(clips), 256)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            yield from itertools.chain.from_iterable(zip(batch, pool.map(one, batch)) for batch in some)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
