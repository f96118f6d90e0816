"""DESED (Turpault et al. 2019): recordings with timed labels, labels without times, or none."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qkd_jax.config import DESEDData
from qkd_jax.data.clips import SPLITS, Annotation, Clip
from qkd_jax.data.sources.times import read_seconds
from qkd_jax.data.sources.walk import is_recording
from qkd_jax.data.tables import data_root, inside, read_table
from qkd_jax.errors import InputError


class _Part(NamedTuple):
    """Recordings in one folder, and their tables, relative to the root."""

    split: str
    audio: str
    strong: str | None = None
    weak: str | None = None
    listed: str | None = None
    """Lists recordings, also those without events; optional."""


_PUBLISHED = (
    _Part("train", "audio/train/weak", weak="metadata/train/weak.tsv"),
    _Part("train", "audio/train/unlabel_in_domain", listed="metadata/train/unlabel_in_domain.tsv"),
    _Part(
        "train",
        "audio/train/synthetic21_train/soundscapes",
        strong="metadata/train/synthetic21_train/soundscapes.tsv",
        listed="metadata/train/synthetic21_train/durations.tsv",
    ),
    _Part(
        "train",
        "audio/train/strong_label_real",
        strong="metadata/train/audioset_strong.tsv",
        listed="metadata/train/audioset_strong_durations.tsv",
    ),
    _Part(
        "valid",
        "audio/validation/synthetic21_validation/soundscapes",
        strong="metadata/validation/synthetic21_validation/soundscapes.tsv",
        listed="metadata/validation/synthetic21_validation/durations.tsv",
    ),
    _Part(
        "test",
        "audio/validation/validation",
        strong="metadata/validation/validation.tsv",
        listed="metadata/validation/validation_durations.tsv",
    ),
)
_PLAIN = tuple(
    _Part(split, f"{split}/audio", f"{split}/strong.tsv", f"{split}/weak.tsv", f"{split}/durations.tsv")
    for split in SPLITS
)


def read_desed(config: DESEDData) -> list[Clip]:
    """The clips of DESED in `config.root`, as published for task 4A of DCASE 2023, or of a set like it.

    As published: folders `metadata` and `audio`.  Training reads `train/weak`, `train/unlabel_in_domain`,
    `train/synthetic21_train/soundscapes` and `train/strong_label_real` (its table is `audioset_strong.tsv`),
    validation reads `validation/synthetic21_validation/soundscapes`, and the test reads
    `validation/validation`, which papers call DESED's validation set.  The public evaluation set is not
    read.  A copy of a folder at 16 kHz, with `_16k` or `-16k` added to its name, is preferred.
    Sets like it: for each SPLIT (train, valid, test), recordings in `SPLIT/audio`, and the tables
    `SPLIT/strong.tsv`, `SPLIT/weak.tsv` and `SPLIT/durations.tsv`.

    Tables are tab-separated.  Strong tables have the columns filename, onset and offset (seconds) and
    event_label; weak tables have filename and event_labels, separated by commas.  A recording has no events
    if its row in a strong table holds a filename alone, or if, beside a strong table, only the table of
    durations lists it, or a weak table without labels.  Without a table of unlabelled recordings, all in
    their folder are read.  A printed line lists missing parts; the group is the name.  Does not check that
    the recordings exist.

    The training clips with annotations, in the order of their names, keep them for the first
    `config.strong`, keep only labels for the next `config.weak`, and become unlabelled for the rest; if
    neither is given, all stay as they are.  Raises InputError that names the file, the row and the column;
    also if there are no clips for training or validation.
    """
    root = data_root(config, "DESED, or train, valid and test with audio and strong.tsv")
    published = (root / "metadata").is_dir()
    parts = _PUBLISHED if published else _PLAIN
    present = [part for part in parts if _is_there(root, part)]
    for split in ("train", "valid"):
        if split not in {part.split for part in present}:
            tables = [part.strong or part.weak for part in parts if part.split == split]
            wanted = " or ".join(filter(None, tables)) + " with its audio folder"
            wanted += "" if published else ", or DESED's metadata folder,"
            raise InputError(f"--data.root: expected {wanted} in {root}, found neither")
    if absent := [part.audio for part in parts if part not in present]:
        print(f"desed: skipped {', '.join(absent)}: folder or table missing in {root}", flush=True)
    return _with_fewer_labels([clip for part in present for clip in _read_part(root, part)], config)


def _is_there(root: Path, part: _Part) -> bool:
    table = part.strong or part.weak
    return _folder(root, part.audio) is not None and (table is None or (root / table).is_file())


def _folder(root: Path, audio: str) -> str | None:
    """The folder `audio`, or its preferred copy, relative to `root`; None if neither exists."""
    folders = (audio + suffix for suffix in ("_16k", "-16k", ""))
    return next((folder for folder in folders if (root / folder).is_dir()), None)


def _read_part(root: Path, part: _Part) -> Iterator[Clip]:
    """The clips of a part, in the order of their names."""
    folder = _folder(root, part.audio)
    assert folder is not None
    labelled = part.strong is not None or part.weak is not None
    timed = _read_strong(root / part.strong) if part.strong else {}
    labels = {file: frozenset(each.event for each in events) for file, events in timed.items()}
    if part.weak and (root / part.weak).is_file():
        for where, file, row in _rows(root / part.weak, "event_labels"):
            kinds = frozenset(filter(None, map(str.strip, row["event_labels"].split(","))))
            if kinds != labels.setdefault(file, kinds):
                raise InputError(
                    f"{where}: event_labels: expected {','.join(sorted(labels[file]))!r}, as in "
                    f"{part.strong}, got {row['event_labels']!r}"
                )
    if part.listed and (root / part.listed).is_file():
        others = [file for _, file, _ in _rows(root / part.listed)]
    else:
        others = [] if labelled else list(filter(is_recording, os.listdir(root / folder)))
    for file in sorted({*labels, *others}):
        events = labels.get(file, frozenset())
        # A clip without events needs no times.
        strong = part.strong is not None and (file in timed or not events)
        yield Clip(
            name=f"{folder}/{file}",
            root=root,
            labels=events,
            group=f"{folder}/{file}",
            split=part.split,
            annotations=tuple(timed.get(file, ())) if strong else None,
            labelled=labelled,
        )


def _read_strong(path: Path) -> dict[str, list[Annotation]]:
    """The annotations of each recording in the table."""
    annotations: dict[str, list[Annotation]] = {}
    for where, file, row in _rows(path, "onset", "offset", "event_label", once=False):
        of_file, event = annotations.setdefault(file, []), row["event_label"]
        if not (row["onset"] or row["offset"] or event):
            continue
        onset, offset = (read_seconds(row[column], f"{where}: {column}") for column in ("onset", "offset"))
        if offset <= onset:
            raise InputError(f"{where}: offset: expected more than {onset:g} s (the onset), got {offset:g} s")
        if not event:
            raise InputError(f"{where}: event_label: expected an event, got {event!r}")
        of_file.append(Annotation(event, onset, offset))
    return annotations


def _rows(path: Path, *columns: str, once: bool = True) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The place of each row, the file it names, and its fields; with `once`, no file may be named twice."""
    lines: dict[str, int] = {}
    rows = read_table(path, ("filename", *columns), setting="--data.root", delimiter="\t", short=True)
    for line, row in rows:
        where = f"{path}: row {line}"
        file = inside(row["filename"], f"{where}: filename")
        if once and file in lines:
            raise InputError(
                f"{where}: filename: expected each recording once, found {file} also in row {lines[file]}"
            )
        lines[file] = line
        yield where, file, row


def _with_fewer_labels(clips: list[Clip], config: DESEDData) -> list[Clip]:
    """`clips` with the labels that `config.strong` and `config.weak` leave."""
    if config.strong is None and config.weak is None:
        return clips
    strong, weak = config.strong or 0, config.weak or 0
    order = sorted(clip.name for clip in clips if clip.split == "train" and clip.annotations is not None)
    weakly, unlabelled = set(order[strong : strong + weak]), set(order[strong + weak :])

    def reduced(clip: Clip) -> Clip:
        if clip.name in weakly:
            return dataclasses.replace(clip, annotations=None)
        if clip.name in unlabelled:
            return dataclasses.replace(clip, annotations=None, labels=frozenset(), labelled=False)
        return clip

    return [reduced(clip) for clip in clips]
