"""Onsets and offsets in tables."""

import math
from collections.abc import Mapping

from qkd_jax.data.clips import MAX_SECONDS, Annotation
from qkd_jax.errors import InputError


def read_annotation(row: Mapping[str, str], columns: tuple[str, str, str], where: str) -> Annotation:
    """The event in a row of a table, whose `columns` hold onset, offset and event; raises InputError.

    The offset may equal the onset.  Times may have a decimal comma.

    >>> read_annotation({"from": "0,5", "to": "1", "event": "dog"}, ("from", "to", "event"), "row 2")
    Annotation(event='dog', onset=0.5, offset=1.0)
    """
    onset, offset = (read_seconds(row[column], f"{where}: {column}") for column in columns[:2])
    if offset < onset:
        raise InputError(
            f"{where}: {columns[1]}: expected at least {onset:g} s (the onset), got {offset:g} s"
        )
    if not (event := row[columns[2]].strip()):
        raise InputError(f"{where}: {columns[2]}: expected an event, got {row[columns[2]]!r}")
    return Annotation(event, onset, offset)


def read_seconds(text: str, where: str) -> float:
    """A time in seconds; raises InputError."""
    try:
        seconds = float(text.replace(",", "."))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_SECONDS:
        raise InputError(f"{where}: expected a time from 0 to {MAX_SECONDS:g} s, got {text!r}")
    return seconds
