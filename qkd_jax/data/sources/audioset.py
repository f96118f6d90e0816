"""AudioSet (Gemmeke et al. 2017): published segments, recordings from any downloader."""

import re
from collections import Counter
from collections.abc import Container
from pathlib import Path

from qkd_jax.config import AudioSetData
from qkd_jax.data.clips import Clip
from qkd_jax.data.sources.walk import recordings_below
from qkd_jax.data.tables import data_root, read_table
from qkd_jax.errors import InputError

_SEGMENTS = ("balanced_train_segments.csv", "unbalanced_train_segments.csv", "eval_segments.csv")
_COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")
_LABELS = "class_labels_indices.csv"
_CLASS = re.compile(rb'(\xef\xbb\xbf)?"?\d+"?, *"?/')
"""The beginning of a class in the index, `0,/m/09x0r,Speech`."""
_LONGEST = 1 << 16
_TIMES = re.compile(r"(_\d.*)?")


def read_audioset(config: AudioSetData) -> list[Clip]:
    """The clips of AudioSet whose recordings are in `config.root`, without splits.

    The root holds `class_labels_indices.csv` and one or more of the published tables of segments:
    `balanced_train_segments.csv`, `unbalanced_train_segments.csv`, `eval_segments.csv`.  Recordings may lie
    in any folder below it (links to folders are followed), in any format that is read.  They are
    named by the YouTube id, with or without Y before it and times after it: `ID.wav`, `YID.wav`,
    `ID_30000_40000.flac`.

    Labels are display names; a segment listed twice becomes one clip with the labels of both; the group is
    the id.  Segments without a recording are left out, and a printed line counts them, in all and for each of
    `config.events`.  If a segment has several recordings, the first by path is used.

    Raises InputError that names the file, and the row or column; also if there is no table of segments, or
    no segment has a recording.
    """
    root = data_root(config, _LABELS)
    labels = _read_labels(root)
    recordings = _find_recordings(root, labels)
    if not recordings:
        raise InputError(f"--data.root: expected recordings named by YouTube ID in {root}, found none")
    if len(recordings) < len(labels):
        print(_left_out(root, labels, recordings, config.events), flush=True)
    return [
        Clip(name=recordings[ytid], root=root, labels=labels[ytid], group=ytid)
        for ytid in labels
        if ytid in recordings
    ]


def _read_labels(root: Path) -> dict[str, frozenset[str]]:
    """The labels of each segment, by YouTube id."""
    display_names = _read_index(root / _LABELS)
    paths = [root / name for name in _SEGMENTS if (root / name).is_file()]
    if not paths:
        raise InputError(
            f"--data.root: expected at least one of {', '.join(_SEGMENTS)} in {root}, found none"
        )
    labels: dict[str, frozenset[str]] = {}
    sets: dict[frozenset[str], frozenset[str]] = {}  # segments with the same labels share one set
    for path in paths:
        for line, row in read_table(path, _COLUMNS, setting="--data.root", header=False):
            if row["YTID"] == _COLUMNS[0]:  # the header, which has lost its #
                continue
            mids = row["positive_labels"].split(",")
            for mid in mids:
                if mid not in display_names:
                    raise InputError(
                        f"{path}: row {line}: positive_labels: expected a MID listed in {_LABELS}, "
                        f"got {mid!r}"
                    )
            known = labels.get(row["YTID"], frozenset()).union(display_names[mid] for mid in mids)
            labels[row["YTID"]] = sets.setdefault(known, known)
    return labels


def _read_index(path: Path) -> dict[str, str]:
    """The display name of each MID, from a table with or without its header."""
    columns, header = ("mid", "display_name"), True
    if path.is_file():
        with open(path, "rb") as file:
            header = _CLASS.match(file.readline(_LONGEST)) is None
    rows = read_table(path, columns if header else ("index", *columns), setting="--data.root", header=header)
    return {row["mid"]: row["display_name"] for _, row in rows}


def _find_recordings(root: Path, ytids: Container[str]) -> dict[str, str]:
    """The path, relative to `root`, of a recording for each id that has one."""
    recordings: dict[str, str] = {}
    for name in recordings_below(root):
        ytid = _ytid(Path(name).stem, ytids)
        if ytid is not None:
            recordings[ytid] = min(name, recordings.get(ytid, name))
    return recordings


def _ytid(stem: str, ytids: Container[str]) -> str | None:
    """The one of `ytids` that this file name belongs to, or None."""
    # An id may itself begin with Y; only the list of ids tells whether the downloader added it.
    for start in (0, 1) if stem.startswith("Y") else (0,):
        ytid, times = stem[start : start + 11], stem[start + 11 :]
        if ytid in ytids and _TIMES.fullmatch(times):
            return ytid
    return None


def _left_out(
    root: Path, labels: dict[str, frozenset[str]], recordings: Container[str], events: tuple[str, ...]
) -> str:
    """The line that reports segments without a recording."""
    missing = [ytid for ytid in labels if ytid not in recordings]
    of_all = Counter(label for kinds in labels.values() for label in kinds)
    of_missing = Counter(label for ytid in missing for label in labels[ytid])
    each = "; ".join(f"{event} {of_missing[event]:,} of {of_all[event]:,}" for event in events)
    line = f"audioset: {len(missing):,} of {len(labels):,} segments have no recording in {root}"
    return f"{line}; skipped" + (f" ({each})" if each else "")
