"""Events as lines of text: a table to read, JSON, Audacity's labels, DESED's table."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from qkd_jax.detector.events import Event
from qkd_jax.errors import InputError, printable

Found = Iterable[tuple[str, Event]]
"""Events, each with the name of the file that it is in."""


def lines(kind: str, found: Found, files: Sequence[str], events: Sequence[str]) -> Iterator[str]:
    """What is `found` of `events` in `files`, in one of `DetectConfig.format`'s kinds, as it is found.

    Raises InputError for Audacity's if there are several files.
    """
    if kind == "table":
        return table(found, files, events)
    if kind == "audacity" and len(files) > 1:
        raise InputError(f"format: audacity's labels are of one file, got {len(files)}")
    return {"json": json_lines, "audacity": audacity, "desed": desed}[kind](found)


def table(found: Found, files: Sequence[str], events: Sequence[str]) -> Iterator[str]:
    """A table to read, as wide as names of `files` and `events` need; times are h:mm:ss.s."""
    file_width, event_width = (max(map(len, column)) for column in (["file", *files], ["event", *events]))

    def row(file: str, onset: str, offset: str, event: str, peak: str) -> str:
        return f"{file:{file_width}}  {onset:>10}  {offset:>10}  {event:{event_width}}  {peak:>5}"

    yield row("file", "onset", "offset", "event", "peak")
    for file, event in found:
        times = _clock(event.onset), _clock(event.offset)
        yield row(printable(file), *times, printable(event.event), f"{event.peak:.3f}")


def json_lines(found: Found) -> Iterator[str]:
    """An object a line with `file`, `event`, `onset` and `offset` in seconds, and `peak`, a probability."""
    for file, event in found:
        times = {"onset": round(event.onset, 3), "offset": round(event.offset, 3)}
        yield json.dumps({"file": file} | dataclasses.asdict(event) | times)


def audacity(found: Found) -> Iterator[str]:
    """A label track for Audacity (File, Import, Labels): onset, offset, event; it has no place for a file."""
    for _, event in found:
        yield f"{event.onset:.6f}\t{event.offset:.6f}\t{printable(event.event)}"


def desed(found: Found) -> Iterator[str]:
    """The table of DESED's tools, tab-separated: filename (without folders), onset, offset, event_label."""
    yield "filename\tonset\toffset\tevent_label"
    for file, event in found:
        yield f"{printable(Path(file).name)}\t{event.onset:.3f}\t{event.offset:.3f}\t{printable(event.event)}"


def _clock(seconds: float) -> str:
    tenths = round(10 * seconds)
    return f"{tenths // 36_000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"
