"""Events as text: each format read back by what reads it."""

import csv
import io
import json
import os

import numpy as np
import pytest
from numpy.testing import assert_allclose
from rich.cells import cell_len

from qkd_jax.commands.event_text import lines
from qkd_jax.detector.events import Event
from tests.faults import refused

EVENTS = ("dog", "baby cry", "gunshot")
FILES = ["night/long name.wav", "b.flac"]
FOUND = [
    ("night/long name.wav", Event(event="baby cry", onset=0.0075, offset=59.9512345, peak=0.98765)),
    ("night/long name.wav", Event(event="dog", onset=59.95, offset=3599.96, peak=0.5)),
    ("b.flac", Event(event="gunshot", onset=36_000.04, offset=180_000.0, peak=0.99999)),
]


def text(kind, found=FOUND, files=FILES):
    return list(lines(kind, iter(found), files, EVENTS))


def test_the_table_has_aligned_columns():
    assert text("table") == [
        "file                      onset      offset  event      peak",
        "night/long name.wav   0:00:00.0   0:01:00.0  baby cry  0.988",
        "night/long name.wav   0:01:00.0   1:00:00.0  dog       0.500",
        "b.flac               10:00:00.0  50:00:00.0  gunshot   1.000",
    ]
    event = Event(event="dog", onset=119.949999, offset=119.950001, peak=0.5)
    # Times never round to sixty seconds.
    assert text("table", [("b.flac", event)])[1].split()[1:3] == ["0:01:59.9", "0:02:00.0"]


def test_a_line_of_json_is_an_event():
    for line, (file, event) in zip(text("json"), FOUND, strict=True):
        item = json.loads(line)
        times = [item.pop("onset"), item.pop("offset")]
        assert times == pytest.approx([event.onset, event.offset], abs=6e-4)
        assert item == {"file": file, "event": event.event, "peak": event.peak}


def test_audacity_reads_onset_offset_and_label():
    rows = [line.split("\t") for line in text("audacity", FOUND[:2], FILES[:1])]
    assert [label for *_, label in rows] == ["baby cry", "dog"]
    times = np.array([row[:2] for row in rows], float)
    assert_allclose(times, [[event.onset, event.offset] for _, event in FOUND[:2]], atol=1e-6)
    with refused(r"^--format audacity: expected one file, got 2"):
        text("audacity")


def test_desed_reads_a_row_an_event():
    rows = list(csv.DictReader(io.StringIO("\n".join(text("desed"))), delimiter="\t"))
    assert [row["filename"] for row in rows] == ["long name.wav", "long name.wav", "b.flac"]
    assert [row["event_label"] for row in rows] == ["baby cry", "dog", "gunshot"]
    for row, (_, event) in zip(rows, FOUND):
        times = [float(row["onset"]), float(row["offset"])]
        assert times == pytest.approx([event.onset, event.offset], abs=6e-4)


def test_names_in_any_script_align_as_a_terminal_shows_them():
    files = ["é.wav", "e\u0301.wav", "犬の声.wav", "كلب.wav", os.fsdecode(b"\xff.wav")]
    events = ["狗叫", "🐕", "كلب", "हाथी", "dog"]
    times = {"onset": 0.0, "offset": 1.0, "peak": 0.5}
    found = [(file, Event(event=event, **times)) for file, event in zip(files, events)]
    rows = list(lines("table", found, files, events))
    for column in ("0:00:00.0", "0.500"):
        assert len({cell_len(row[: row.index(column)]) for row in rows[1:]}) == 1, column
    assert {cell_len(row) for row in rows} == {cell_len(rows[0])}
    assert rows[-1].startswith(r"\udcff.wav ")


def test_desed_names_files_with_folders_where_these_tell_them_apart(tmp_path, monkeypatch):
    def names(*files):
        found = [(file, Event(event="dog", onset=0.0, offset=1.0, peak=0.5)) for file in files]
        return [line.split("\t")[0] for line in lines("desed", found, files, EVENTS)][1:]

    monkeypatch.chdir(tmp_path)
    assert names("day/x.wav", "night/y.wav") == ["x.wav", "y.wav"]
    assert names("day/x.wav", "./day/x.wav") == ["x.wav", "x.wav"]
    assert names("day/x.wav", "day/1/x.wav", "y.wav") == ["day/x.wav", "day/1/x.wav", "y.wav"]
    assert names(f"{tmp_path}/in/day/x.wav", "in/night/x.wav") == ["day/x.wav", "night/x.wav"]


def test_a_header_comes_before_the_first_event():
    def found():
        raise AssertionError("asked for an event")
        yield

    for kind in ("table", "desed"):
        assert next(lines(kind, found(), FILES, EVENTS)).startswith("file")


@pytest.mark.parametrize("kind", ["table", "json", "audacity", "desed"])
def test_no_name_breaks_a_line_or_a_terminal(kind):
    name = "a\tb\n\x1b[2J\udcff.wav"
    event = Event(event="dog\n\x1b", onset=1.0, offset=2.0, peak=0.5)
    for line in lines(kind, [(name, event)], [name], ["dog\n\x1b"]):
        line.encode()
        assert "\n" not in line and "\x1b" not in line and line.count("\t") in (0, 2, 3)
