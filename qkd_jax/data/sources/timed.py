"""Your own recordings with timed labels: a table, Audacity's label tracks, Raven's selection tables."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qkd_jax.config import AudacityData, RavenData, TimedData
from qkd_jax.data.clips import Annotation, Clip
from qkd_jax.data.sources.times import read_annotation, read_seconds
from qkd_jax.data.sources.walk import files_below, folder_splits, is_in, listed, recordings_below, report
from qkd_jax.data.spelling import names_on_disk
from qkd_jax.data.tables import data_root, inside, plain, read_table, split_of
from qkd_jax.errors import InputError

_HEAD = 1 << 16
"""Bytes of a text file that show whether it holds rows."""
_BLANK = b"\r\n\t \0\xef\xbb\xbf\xff\xfe"
_TEXT: dict[str, Any] = {"setting": "--data.root", "delimiter": "\t", "quotes": False, "short": True}
"""How Audacity and Raven write tables."""
_BEGIN, _END, _OFFSET = "Begin Time (s)", "End Time (s)", "File Offset (s)"
_FILE, _PATH = "Begin File", "Begin Path"
_RAVEN_LABELS = ("Annotation", "Species", "Common Name")


def read_timed(config: TimedData) -> list[Clip]:
    """The clips of the recordings that the table in `config.root` names, each with its events.

    A row has the path of a recording, onset and offset in seconds, and the event; a row with a path alone
    names a recording without events.  Splits are those of the split column, else those of folders named like
    splits, else None.  Recordings that no row names are left out, and a printed line counts them.

    Raises InputError that names the file, the row and the column.
    """
    root = data_root(config, config.table)
    path, on_disk = root / config.table, names_on_disk(root)
    times = (config.onset_column, config.offset_column, config.label_column)
    annotations: dict[str, list[Annotation]] = {}
    splits: dict[str, str] = {}
    groups: dict[str, str] = {}
    rows = read_table(
        path,
        (config.filename_column, *times),
        setting="--data.root",
        optional=(config.split_column, config.group_column),
        short=True,
        hint="; --data.filename-column, --data.onset-column, --data.offset-column and --data.label-column "
        "name the columns to read",
    )
    for line, row in rows:
        where = f"{path}: row {line}"
        name = on_disk(inside(row[config.filename_column], f"{where}: {config.filename_column}"))
        of_recording = annotations.setdefault(name, [])
        if any(row[column] for column in times):
            of_recording.append(read_annotation(row, times, where))
        if row.get(config.split_column):
            row[config.split_column] = split_of(row[config.split_column], f"{where}: {config.split_column}")
        for column, known in ((config.split_column, splits), (config.group_column, groups)):
            if (value := row.get(column)) and known.setdefault(name, value) != value:
                raise InputError(
                    f"{where}: {column}: expected {known[name]!r}, as in an earlier row, got {value!r}"
                )
    if splits and (without := [name for name in annotations if name not in splits]):
        raise InputError(
            f"{path}: {config.split_column}: expected a split of each recording, got none of {without[0]}"
        )
    _report_rest(
        config,
        f"recordings that {config.table} doesn't name",
        set(recordings_below(root)) - annotations.keys(),
    )
    return _clips(root, annotations, splits, groups)


def read_audacity(config: AudacityData) -> list[Clip]:
    """The clips of the recordings in `config.root` that have a label track beside them: x.txt for x.wav.

    A line has onset and offset in seconds and the event, separated by tabs; lines with ranges of frequency
    are ignored.  An empty track stands for a recording without events.  Folders named like splits are
    splits.  Recordings without a track, and tracks without a recording, are left out, and a printed line
    counts them.

    Raises InputError that names the file, the row and the column.
    """
    root = data_root(config, "recordings, each with an Audacity label track")
    tracks = {_stem(file): file for file in _texts(root)}
    recordings = {name: _stem(name) for name in recordings_below(root)}
    annotations = {
        name: _read_track(root / tracks[stem]) for name, stem in recordings.items() if stem in tracks
    }
    if not annotations:
        raise InputError(
            f"--data.root: expected recordings with a label track beside them, x.txt for x.wav, in {root}, "
            "found none"
        )
    _report_rest(config, "recordings without a label track", recordings.keys() - annotations.keys())
    alone = tracks.keys() - recordings.values()
    report(config.source, "text files without a recording beside them", (tracks[stem] for stem in alone))
    return _clips(root, annotations)


def _read_track(path: Path) -> list[Annotation]:
    """The events of a label track."""
    if not _head(path).strip(_BLANK):
        return []
    columns = ("onset", "offset", "label")
    rows = read_table(path, columns, header=False, **_TEXT)
    return [
        read_annotation(row, columns, f"{path}: row {line}")
        for line, row in rows
        if row["onset"] != "\\"  # the range of frequencies of the label before
    ]


def read_raven(config: RavenData) -> list[Clip]:
    """The clips of the recordings in `config.root` that selection tables of Raven cover.

    A table is a text file with the columns Begin Time (s), End Time (s), and `config.label_column`.  It
    covers the recording of its name, x.wav for x.Table.1.selections.txt, or those in its column Begin File or
    Begin Path, beside it or elsewhere in the root; for several, onsets are in the column File Offset (s).
    Raven lists a selection once for each view; it counts once.  A table without rows stands for a recording
    without events.  Folders named like splits are splits.  Recordings without a table, and tables without a
    recording, are left out, and a printed line counts them.

    Raises InputError that names the file, the row and the column.
    """
    root = data_root(config, "recordings with selection tables of Raven")
    recordings = recordings_below(root)
    named = _Named(recordings)
    found: dict[str, set[Annotation]] = {}
    missing = set()
    for table in _texts(root):
        if _BEGIN.encode() not in _head(root / table).replace(b"\0", b""):
            continue
        selections = _read_selections(root / table, config.label_column)
        for file, annotations in selections.items():
            name = named.beside(table, file, root)
            if name is None and len(selections) == 1:
                name = named.like(table)
            if name is None:
                missing.add(f"{table}: {file}" if file else table)
            else:
                found.setdefault(name, set()).update(annotations)
    if not found:
        raise InputError(
            f"--data.root: expected recordings with selection tables, x.Table.1.selections.txt for x.wav, in "
            f"{root}, found none"
        )
    _report_rest(config, "recordings without a selection table", set(recordings) - found.keys())
    report(config.source, "selection tables without their recording", missing)
    return _clips(
        root,
        {
            name: sorted(found[name], key=lambda each: (each.onset, each))
            for name in recordings
            if name in found
        },
    )


def _read_selections(path: Path, label_column: str | None) -> dict[str, list[Annotation]]:
    """The events in a selection table by recording: its name in the table, empty if the table has none."""
    if len(_head(path).strip(_BLANK).splitlines()) < 2:  # only its header
        return {"": []}
    found: dict[str, list[Annotation]] = defaultdict(list)
    names: Iterable[str] = ()
    for line, row in read_table(path, (_BEGIN, _END), **_TEXT):
        names, where = row, f"{path}: row {line}"
        label = label_column or next((column for column in _RAVEN_LABELS if column in row), _RAVEN_LABELS[0])
        if label not in row:
            raise InputError(
                f"{path}: expected a column {label}, found {', '.join(row)}; --data.label-column names it"
            )
        event, onset, offset = read_annotation(row, (_BEGIN, _END, label), where)
        if row.get(_OFFSET):
            length, onset = offset - onset, read_seconds(row[_OFFSET], f"{where}: {_OFFSET}")
            offset = onset + length
        file = row.get(_FILE) or re.split(r"[\\/]", row.get(_PATH, ""))[-1]
        found[file].append(Annotation(event, onset, offset))
    if len(found) > 1 and _OFFSET not in names:
        raise InputError(
            f"{path}: expected a column {_OFFSET}, since it covers {len(found)} recordings, found none"
        )
    return found


class _Named:
    """Finds recordings by the names that tables have or give, in either Unicode form."""

    def __init__(self, recordings: Sequence[str]):
        self.by_stem = {_stem(name): name for name in recordings}
        self.by_file: dict[str, list[str]] = defaultdict(list)
        for name in recordings:
            self.by_file[plain(os.path.basename(name))].append(name)

    def like(self, table: str) -> str | None:
        """The recording whose name, without its suffix, begins the table's name up to a dot."""
        parts = plain(table).split(".")
        stems = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((self.by_stem[stem] for stem in stems if stem in self.by_stem), None)

    def beside(self, table: str, file: str, root: Path) -> str | None:
        """The recording `file` beside the table, or the only one elsewhere; raises InputError for several."""
        named, folder = self.by_file.get(plain(file), []), os.path.dirname(table)
        if beside := [name for name in named if os.path.dirname(name) == folder]:
            return max(beside, key=lambda name: os.path.basename(name) == file)
        if len(named) > 1:
            raise InputError(
                f"{root / table}: {_FILE}: expected one recording named {file}, found {listed(named)}"
            )
        return named[0] if named else None


def _stem(name: str) -> str:
    """The name without its suffix, in one Unicode form."""
    return plain(os.path.splitext(name)[0])


def _texts(root: Path) -> list[str]:
    return [file for file in files_below(root) if file.lower().endswith(".txt")]


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_HEAD)


def _report_rest(config: TimedData | AudacityData | RavenData, what: str, names: Iterable[str]) -> None:
    """Report recordings that are left out, without those that are read as unlabelled ones."""
    root = Path(config.root or "")
    report(config.source, what, (name for name in names if not is_in(config.unlabelled, root / name)))


def _clips(
    root: Path,
    annotations: Mapping[str, Sequence[Annotation]],
    splits: Mapping[str, str] = {},
    groups: Mapping[str, str] = {},
) -> list[Clip]:
    """A clip per recording; without `splits`, those of folders named like splits."""
    of_folder = {} if splits else folder_splits(root, list(annotations))
    return [
        Clip(
            name=name,
            root=root,
            labels=frozenset(each.event for each in events),
            group=groups.get(name, name),
            split=splits.get(name) or of_folder.get(name.split(os.sep)[0]),
            annotations=tuple(events),
        )
        for name, events in annotations.items()
    ]
