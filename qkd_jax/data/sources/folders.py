"""Your own recordings: a folder per class."""

import os
from collections import defaultdict
from collections.abc import Mapping

from qkd_jax.config import FoldersData
from qkd_jax.data.clips import Clip, divide
from qkd_jax.data.sources.walk import files_below, folder_splits, is_in, is_recording, report
from qkd_jax.data.tables import data_root
from qkd_jax.errors import InputError, printable

_SHARES = (0.875, 0.125, 0.0)


def read_folders(config: FoldersData) -> list[Clip]:
    """The clips of a folder per class: `CLASS/001.wav`, `CLASS/any/folder/002.flac`.

    Recordings in one of `config.negative_folders` are negatives, unless its name is one of `config.events`; a
    printed line names these folders.  If all folders of the root are named like splits (train, valid, test;
    val, validation, …), they hold the folders of classes; without one for validation, an eighth of the
    training recordings is taken for it.  Otherwise splits are None.  The group of a recording is its path.
    A folder `config.unlabelled` in the root is none of these.  Recordings outside the folders of classes are
    left out; printed lines name these, and folders with other files alone.

    Raises InputError if there is no folder of recordings, or some are named like splits and others aren't.
    """
    root = data_root(config, "a folder per class")
    files = list(files_below(root))
    if not is_in(config.unlabelled, root):
        files = [file for file in files if not is_in(config.unlabelled, root / file)]
    recordings = list(filter(is_recording, files))
    splits = folder_splits(root, [name for name in recordings if os.sep in name])
    negatives = {folder.lower() for folder in config.negative_folders}
    sets: dict[str, frozenset[str]] = {}  # recordings of one class share one set
    clips, outside = [], []
    for name in recordings:
        if not (folder := _class_of(name, splits)):
            outside.append(name)
            continue
        negative = folder.lower() in negatives and folder not in config.events
        labels = sets.setdefault(folder, frozenset() if negative else frozenset({folder}))
        split = splits.get(name.split(os.sep)[0])
        clips.append(Clip(name=name, root=root, labels=labels, group=name, split=split))
    if not clips:
        raise InputError(f"--data.root: expected a folder of recordings per class in {root}, found none")
    empty, full = ({_class_of(name, splits) for name in names} for names in (files, recordings))
    if without_events := [folder for folder, labels in sorted(sets.items()) if not labels]:
        print(printable(f"folders: negatives in {', '.join(without_events)}"), flush=True)
    report("folders", "recordings outside the folders of classes", outside)
    report("folders", "folders without recordings", empty - full - {""})
    return _with_validation(clips)


def _class_of(name: str, splits: Mapping[str, str]) -> str:
    """The class whose folder holds the file; empty if none does."""
    folders = name.split(os.sep)[:-1]
    return "".join(folders[1:2] if splits else folders[:1])


def _with_validation(clips: list[Clip]) -> list[Clip]:
    """`clips`; if they have splits and none is for validation, with a part of the training clips for it."""
    of_split = defaultdict(list)
    for clip in clips:
        of_split[clip.split].append(clip)
    if None in of_split or "valid" in of_split:
        return clips
    return divide(of_split["train"], shares=_SHARES) + of_split["test"]
