"""Events as lines of text: a table to read, JSON, labels for Audacity, the table of DESED."""

import dataclasses
import json
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
    return {"json": json_lines, "audacity": audacity, "desed": desed}[kind](found)


def table(found: Found, files: Sequence[str], events: Sequence[str]) -> Iterator[str]:
    """A table with columns wide enough for the names of `files` and `events`; times are h:mm:ss.s."""
    file_width, event_width = (max(map(len, column)) for column in (["file", *files], ["event", *events]))

    def row(file: str, onset: str, offset: str, event: str, peak: str) -> str:
        return f"{file:{file_width}}  {onset:>10}  {offset:>10}  {event:{event_width}}  {peak:>5}"

    yield row("file", "onset", "offset", "event", "peak")
    for file, event in found:
        times = _clock(event.onset), _clock(event.offset)
        yield row(printable(file), *times, printable(event.event), f"{event.peak:.3f}")


def json_lines(found: Found) -> Iterator[str]:
    """One object per event: `file`, `event`, `onset` and `offset` in seconds, and `peak`, a probability."""
    for file, event in found:
        times = {"onset": round(event.onset, 3), "offset": round(event.offset, 3)}
        yield json.dumps({"file": file} | dataclasses.asdict(event) | times)


def audacity(found: Found) -> Iterator[str]:
    """A label track for Audacity (File, Import, Labels): onset, offset, event, without the file's name."""
    for _, event in found:
        yield f"{event.onset:.6f}\t{event.offset:.6f}\t{printable(event.event)}"


def desed(found: Found) -> Iterator[str]:
    """DESED's tab-separated table: filename (without folders), onset, offset, event_label."""
    yield "filename\tonset\toffset\tevent_label"
    for file, event in found:
        yield f"{printable(Path(file).name)}\t{event.onset:.3f}\t{event.offset:.3f}\t{printable(event.event)}"


def _clock(seconds: float) -> str:
    """Seconds as h:mm:ss.s.

    >>> _clock(3661.25)
    '1:01:01.2'
    """
    tenths = round(10 * seconds)
    return f"{tenths // 36_000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"
