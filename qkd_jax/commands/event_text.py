"""Events as lines of text: a table to read, JSON, labels for Audacity, the table of DESED."""

import dataclasses
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from qkd_jax.detector.events import Event
from qkd_jax.errors import InputError, printable

Found = Iterable[tuple[str, Event]]
"""Events, each with the name of its file."""


def lines(kind: str, found: Found, files: Sequence[str], events: Sequence[str]) -> Iterator[str]:
    """The events `found` in `files`, in one of the formats of `DetectOptions`, one by one as they come.

    `events` are the names of all events of the detector.  Raises InputError for Audacity's format and several
    files.
    """
    if kind == "table":
        return table(found, files, events)
    if kind == "audacity" and len(files) > 1:
        raise InputError(f"--format audacity: expected one file, got {len(files)}")
    if kind == "desed":
        return desed(found, files)
    return {"json": json_lines, "audacity": audacity}[kind](found)


def table(found: Found, files: Sequence[str], events: Sequence[str]) -> Iterator[str]:
    """A table with columns wide enough for the names of `files` and `events`; times are h:mm:ss.s."""
    file_width, event_width = (
        max(width(_plain(name)) for name in column) for column in (["file", *files], ["event", *events])
    )

    def row(file: str, onset: str, offset: str, event: str, peak: str) -> str:
        file, event = _padded(file, file_width), _padded(event, event_width)
        return f"{file}  {onset:>10}  {offset:>10}  {event}  {peak:>5}"

    yield row("file", "onset", "offset", "event", "peak")
    for file, event in found:
        times = _clock(event.onset), _clock(event.offset)
        yield row(_plain(file), *times, _plain(event.event), f"{event.peak:.3f}")


def width(text: str) -> int:
    """The columns that `text` takes in a terminal: two for East Asian letters and emoji, none for accents.

    >>> width("犬"), width("e\u0301")
    (2, 1)
    """
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.category(letter) in ("Mn", "Mc", "Me", "Cf") for letter in text)


def _padded(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))


def _plain(name: str) -> str:
    """`name` in printable characters; bytes that aren't UTF-8 stay apart, as escapes."""
    return printable(name.encode(errors="backslashreplace").decode())


def json_lines(found: Found) -> Iterator[str]:
    """One object per event: `file`, `event`, `onset` and `offset` in seconds, and `peak`, a probability."""
    for file, event in found:
        times = {"onset": round(event.onset, 3), "offset": round(event.offset, 3)}
        yield json.dumps({"file": file} | dataclasses.asdict(event) | times)


def audacity(found: Found) -> Iterator[str]:
    """A label track for Audacity (File, Import, Labels): onset, offset, event, without the file's name."""
    for _, event in found:
        yield f"{event.onset:.6f}\t{event.offset:.6f}\t{_plain(event.event)}"


def desed(found: Found, files: Sequence[str]) -> Iterator[str]:
    """DESED's tab-separated table: filename, onset, offset, event_label.

    Names are without folders, or relative to the folder that all `files` are in if two have the same name.
    """
    names = _short_names(files)
    yield "filename\tonset\toffset\tevent_label"
    for file, event in found:
        yield f"{_plain(names[file])}\t{event.onset:.3f}\t{event.offset:.3f}\t{_plain(event.event)}"


def _short_names(files: Sequence[str]) -> dict[str, str]:
    """The names of `files` without folders, or with those that tell them apart.

    >>> _short_names(["in/a.wav", "in/b.wav"]), _short_names(["in/1/a.wav", "in/2/a.wav"])
    ({'in/a.wav': 'a.wav', 'in/b.wav': 'b.wav'}, {'in/1/a.wav': '1/a.wav', 'in/2/a.wav': '2/a.wav'})
    """
    paths = {file: os.path.abspath(file) for file in files}
    names = {file: os.path.basename(path) for file, path in paths.items()}
    if len(set(names.values())) < len(set(paths.values())):
        folder = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
        names = {file: Path(os.path.relpath(path, folder)).as_posix() for file, path in paths.items()}
    return names


def _clock(seconds: float) -> str:
    """Seconds as h:mm:ss.s.

    >>> _clock(3661.25)
    '1:01:01.2'
    """
    tenths = round(10 * seconds)
    return f"{tenths // 36_000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"
