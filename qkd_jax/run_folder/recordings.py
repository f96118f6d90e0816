"""A run's recordings: whether they are where they were, or the same ones in other folders."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qkd_jax.config import AnyData, DemoData
from qkd_jax.data.arrays import read_npy
from qkd_jax.data.clip_list import recordings_of
from qkd_jax.data.clips import SPLITS, UNLABELLED, Clip
from qkd_jax.errors import InputError
from qkd_jax.run_folder.run import Run
from qkd_jax.system.files import whole_file

_SIZES = "sizes.npy"


def write_sizes(run: Run, clips: Sequence[Clip]) -> None:
    """Write the bytes of each recording, by which `moved_to` recognizes it in another folder."""
    with whole_file(run.folder / _SIZES) as file:
        np.save(file, np.array([clip.path.stat().st_size for clip in clips], np.int64))


def check_recordings(run: Run, splits: Sequence[str] = SPLITS) -> None:
    """Raise InputError, which names the first one, if recordings of `splits` are missing."""
    clips = [clip for clip in run.clips if clip.split in splits]
    if missing := [clip for clip in clips if not clip.path.is_file()]:
        moved = (
            ""
            if isinstance(run.config.data, DemoData)
            else (
                f"; if they have moved, `qkd-jax train` with {_flag(missing[0])} DIR finds them for every "
                "command, `eval` for itself"
            )
        )
        raise InputError(
            f"{missing[0].path}: expected a recording of the run, found none; {len(missing)} of {len(clips)} "
            f"are missing{moved}"
        )


def places_of(data: AnyData) -> tuple[str | None, str | None]:
    """The folders that recordings are in, with labels and without."""
    return data.root, data.unlabelled


def in_places_of(old: AnyData, new: AnyData) -> AnyData:
    """`new` in the folders of `old`, where both have one."""
    both = (field for field in ("root", "unlabelled") if getattr(old, field) and getattr(new, field))
    return dataclasses.replace(new, **{field: getattr(old, field) for field in both})


def _flag(clip: Clip) -> str:
    return f"--data.{'unlabelled' if clip.name.startswith(UNLABELLED) else 'root'}"


def moved_to(run: Run, data: AnyData, splits: Sequence[str] = SPLITS) -> Run:
    """`run` with its recordings in the folders of `data`, where each of `splits` has its name and its size.

    Raises InputError otherwise.  Runs from before version 0.3 have no sizes: there, names are enough.
    """
    there = in_places_of(data, run.config.data)
    moved = dataclasses.replace(run, config=dataclasses.replace(run.config, data=there))
    clips, path = moved.clips, run.folder / _SIZES
    sizes: Sequence[int | None] = [None] * len(clips)
    if path.is_file():
        sizes = read_npy(path, what := f"the sizes of {len(clips)} recordings", "i", 1).tolist()
        if len(sizes) != len(clips):
            raise InputError(f"{path}: expected {what}, found {len(sizes)}")
    chosen = [(clip, size) for clip, size in zip(clips, sizes) if clip.split in splits]
    others = [clip for clip, size in chosen if not _is_same(clip.path, size)]
    if others:
        raise InputError(
            f"{_flag(others[0])}: expected the {len(chosen)} recordings of the run, with their names and "
            f"sizes, in {others[0].root}, found {len(others)} missing or changed, the first "
            f"{others[0].name}; for others use another --name"
        )
    return moved


def _is_same(path: Path, size: int | None) -> bool:
    try:
        return path.is_file() and size in (None, path.stat().st_size)
    except OSError:
        return False


def same_but_moved(run: Run, data: AnyData, split: str) -> Run | None:
    """`moved_to`, if `data` differs by its folders alone, the recordings are there, and not where they were.

    Only those of `split` count.
    """
    own = recordings_of(run.config.data)
    if data.root is None or dataclasses.replace(in_places_of(own, data), skip_bad=own.skip_bad) != own:
        return None
    if all(clip.path.is_file() for clip in run.clips if clip.split == split):
        return None
    try:
        return moved_to(run, dataclasses.replace(data, root=str(Path(data.root).absolute())), [split])
    except InputError:
        return None  # other recordings in the same layout
