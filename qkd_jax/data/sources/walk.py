"""Recordings and label files below a folder."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from qkd_jax.audio.reading import SUFFIXES
from qkd_jax.data.tables import SPLIT_NAMES
from qkd_jax.errors import InputError, printable


def files_below(root: Path) -> Iterator[str]:
    """The paths, relative to `root`, of all files in it and in its folders, in the same order everywhere.

    Links to folders are followed, each folder once.  Hidden files and folders, such as those that macOS adds,
    are left out.
    """
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        # A link to a parent folder would make the walk endless.
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        relative = os.path.relpath(folder, root)
        for file in sorted(files):
            if not file.startswith("."):
                yield os.path.normpath(os.path.join(relative, file))


def recordings_below(root: Path) -> list[str]:
    """The recordings among `files_below`."""
    return list(filter(is_recording, files_below(root)))


def is_recording(file: str) -> bool:
    """Whether the file's suffix is one of a recording."""
    return os.path.splitext(file)[1].lower() in SUFFIXES


def is_in(folder: str | None, path: Path) -> bool:
    """Whether `path` is `folder` or in it, whatever links lead there."""
    return folder is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def folder_splits(root: Path, names: Sequence[str]) -> dict[str, str]:
    """The split that each top folder of `names`, relative to `root`, stands for.

    Empty if one of these at most is named like a split: a class may be called train.  Raises InputError if
    several are, and others aren't.

    >>> folder_splits(Path("."), ["train/dog/1.wav", "validation/dog/2.wav"])
    {'train': 'train', 'validation': 'valid'}
    """
    tops = sorted({name.split(os.sep)[0] for name in names})
    splits = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    others = [top for top in tops if top not in splits]
    if others and len(splits) > 1:
        raise InputError(
            f"--data.root: expected all recordings in folders named like splits, or none, in {root}, found "
            f"{', '.join(splits)} beside {listed(others)}"
        )
    return {} if others else splits


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first of `names`, and how many there are: for messages.

    >>> listed(["a", "b", "c", "d"])
    '4 (a, b, c, …)'
    """
    return f"{len(names)} ({', '.join(names[:most])}{', …' * (len(names) > most)})"


def report(source: str, what: str, names: Iterable[str]) -> None:
    """Print which files a source leaves out, if any."""
    if names := sorted(names):
        print(printable(f"{source}: skipped {what}: {listed(names)}"), flush=True)
