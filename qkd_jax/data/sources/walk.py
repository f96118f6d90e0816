"""Recordings and label files below a folder."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from qkd_jax.audio.reading import SUFFIXES
from qkd_jax.data.tables import SPLIT_NAMES
from qkd_jax.errors import printable


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


def folder_splits(names: Sequence[str]) -> dict[str, str]:
    """The split that each top folder of `names` stands for; empty unless all are in a folder that does.

    >>> folder_splits(["train/dog/1.wav", "validation/dog/2.wav"])
    {'train': 'train', 'validation': 'valid'}
    """
    tops = {name.split(os.sep)[0] if os.sep in name else "" for name in names}
    splits = {top: SPLIT_NAMES.get(top.lower()) for top in sorted(tops)}
    return {top: split for top, split in splits.items() if split} if all(splits.values()) else {}


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
