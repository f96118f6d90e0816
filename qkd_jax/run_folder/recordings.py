"""A run's recordings: whether they are where they were, or the same ones under another root."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qkd_jax.config import AnyData, DemoData, with_data
from qkd_jax.data.arrays import read_npy
from qkd_jax.data.clip_list import recordings_of
from qkd_jax.data.clips import SPLITS, Clip
from qkd_jax.errors import InputError
from qkd_jax.run_folder.run import Run
from qkd_jax.system.files import whole_file

_SIZES = "sizes.npy"


def write_sizes(run: Run, clips: Sequence[Clip]) -> None:
    """Write the bytes of each recording, by which `moved_to` recognizes it under another root."""
    with whole_file(run.folder / _SIZES) as file:
        np.save(file, np.array([clip.path.stat().st_size for clip in clips], np.int64))


def check_recordings(run: Run, splits: Sequence[str] = SPLITS) -> None:
    """Raise InputError, which names the first one, if recordings of `splits` are missing."""
    clips = [clip for clip in run.clips if clip.split in splits]
    if missing := [clip for clip in clips if not clip.path.is_file()]:
        moved = (
            ""
            if isinstance(run.config.data, DemoData)
            else ("; if they have moved, `qkd-jax train` and `eval` with --data.root DIR find them")
        )
        raise InputError(
            f"{missing[0].path}: expected a recording of the run, found none; {len(missing)} of {len(clips)} "
            f"are missing{moved}"
        )


def moved_to(run: Run, root: str) -> Run:
    """`run` with its recordings under another `root`, where each has its name and its size.

    Raises InputError otherwise.  Runs from before version 0.3 have no sizes: there, names are enough.
    """
    moved = dataclasses.replace(run, config=with_data(run.config, root=root))
    clips, path = moved.clips, run.folder / _SIZES
    sizes: Sequence[int | None] = [None] * len(clips)
    if path.is_file():
        sizes = read_npy(path, what := f"the sizes of {len(clips)} recordings", "i", 1).tolist()
        if len(sizes) != len(clips):
            raise InputError(f"{path}: expected {what}, found {len(sizes)}")
    others = [clip for clip, size in zip(clips, sizes) if not _is_same(clip.path, size)]
    if others:
        raise InputError(
            f"--data.root: expected the {len(clips)} recordings of the run, with their names and sizes, in "
            f"{root}, found {len(others)} missing or changed, the first {others[0].name}; for others use "
            "another --name"
        )
    return moved


def _is_same(path: Path, size: int | None) -> bool:
    try:
        return path.is_file() and size in (None, path.stat().st_size)
    except OSError:
        return False


def same_but_moved(run: Run, data: AnyData) -> Run | None:
    """`moved_to`, if `data` differs by its root alone, the recordings are there, and not where they were."""
    own = recordings_of(run.config.data)
    if data.root is None or dataclasses.replace(data, root=own.root, skip_bad=own.skip_bad) != own:
        return None
    if all(clip.path.is_file() for clip in run.clips):
        return None
    try:
        return moved_to(run, str(Path(data.root).absolute()))
    except InputError:
        return None  # other recordings in the same layout
