"""Timed labels as people keep them: a table, Audacity's label tracks, Raven's selection tables."""

import pytest

from qkd_jax.config import AudacityData, RavenData, TimedData
from qkd_jax.data.sources.timed import read_audacity, read_raven, read_timed
from tests.faults import SPLIT_WORDS, refused_exactly

READERS = {TimedData: read_timed, AudacityData: read_audacity, RavenData: read_raven}


@pytest.fixture
def read(tmp_path):
    """Reads a tree of texts and empty recordings by a source: the events of each recording."""

    def read(source, files, fields=("annotations",), **settings):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        clips = READERS[source](source(root=str(tmp_path), **settings))
        for clip in clips:
            assert clip.root == tmp_path and clip.labels == {each.event for each in clip.annotations}
        return {clip.name: tuple(getattr(clip, field) for field in fields) for clip in clips}

    return read


def events(*each):
    return (tuple(each),)


TABLE = """\
filename,onset,offset,label
a.wav,0.5,1.25,dog
b/b.wav,,,
a.wav,3,3,click
a.wav,"4,5",5,dog
c.wav
"""


def test_a_table_of_events(read, capsys):
    files = dict.fromkeys(("a.wav", "b/b.wav", "c.wav", "d.wav", "e.flac", "f.json"), "")
    assert read(TimedData, {"annotations.csv": TABLE, **files}) == {
        "a.wav": events(("dog", 0.5, 1.25), ("click", 3, 3), ("dog", 4.5, 5)),
        "b/b.wav": events(),
        "c.wav": events(),
    }
    assert capsys.readouterr().out == (
        "timed: skipped recordings that annotations.csv doesn't name: 2 (d.wav, e.flac)\n"
    )


def test_a_table_with_other_columns_splits_and_groups(read):
    text = "path\tfrom\tto\tevent\tset\tday\na.wav\t1\t2\tdog\ttrain\t1\na.wav\t3\t4\tcat\ttrain\t1\n"
    columns = {"filename": "path", "onset": "from", "offset": "to", "label": "event", "group": "day"}
    assert read(
        TimedData,
        {"list.tsv": text + "b.wav\t\t\t\tVal\t2\n"},
        ("split", "group", "annotations"),
        table="list.tsv",
        split_column="set",
        **{f"{name}_column": column for name, column in columns.items()},
    ) == {
        "a.wav": ("train", "1", *events(("dog", 1, 2), ("cat", 3, 4))),
        "b.wav": ("valid", "2", ()),
    }


def test_splits_of_timed_labels_may_be_folders(read, tmp_path):
    text = "filename,onset,offset,label\ntrain/a.wav,0,1,dog\nval/a.wav\ntest/x/a.wav\n"
    splits = {"train/a.wav": ("train",), "val/a.wav": ("valid",), "test/x/a.wav": ("test",)}
    assert read(TimedData, {"annotations.csv": text}, ("split",)) == splits
    with refused_exactly(
        f"--data.root: expected all recordings in folders named like splits, or none, in {tmp_path}, found "
        "test, train, val beside 1 (d.wav)"
    ):
        read(TimedData, {"annotations.csv": text + "d.wav\n"})


def test_unlabelled_recordings_are_not_reported_as_skipped(read, tmp_path, capsys):
    files = {"a.wav": "", "a.txt": "0\t1\tdog\n", "more/b.wav": "", "c.wav": ""}
    assert set(read(AudacityData, files, unlabelled=str(tmp_path / "more"))) == {"a.wav"}
    assert capsys.readouterr().out == "audacity: skipped recordings without a label track: 1 (c.wav)\n"


def test_names_in_tables_are_those_on_disk_before_splits_are_looked_for(read, capsys):
    rows = ["train\\a.wav,0,1,dog", "train/a.wav,2,3,dog", "valid\\caf\u00e9.wav"]
    files = {"annotations.csv": "\n".join(["filename,onset,offset,label", *rows]) + "\n"}
    on_disk = "train/a.wav", "valid/cafe\u0301.wav"
    assert read(TimedData, files | dict.fromkeys(on_disk, ""), ("split", "group", "annotations")) == {
        on_disk[0]: ("train", on_disk[0], *events(("dog", 0, 1), ("dog", 2, 3))),
        on_disk[1]: ("valid", on_disk[1], ()),
    }
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.wav,2,1,dog", "row 2: offset: expected at least 2 s (the onset), got 1 s"),
        ("a.wav,x,1,dog", "row 2: onset: expected a time from 0 to 1e+09 s, got 'x'"),
        ("a.wav,-1,1,dog", "row 2: onset: expected a time from 0 to 1e+09 s, got '-1'"),
        ("a.wav,,,dog", "row 2: onset: expected a time from 0 to 1e+09 s, got ''"),
        ("a.wav,1,nan,dog", "row 2: offset: expected a time from 0 to 1e+09 s, got 'nan'"),
        ("a.wav,1,2, ", "row 2: label: expected an event, got ''"),
        ("../a.wav,1,2,dog", "row 2: filename: expected a path within --data.root, got '../a.wav'"),
        ("a.wav,1,2,dog,test", "row 3: split: expected 'test', as in an earlier row, got 'valid'"),
        (
            "a.wav,1,2,dog,all",
            f"row 2: split: expected {SPLIT_WORDS}, got 'all'",
        ),
        ("a.wav,1,2,dog,test\nb.wav", "split: expected a split of each recording, got none of b.wav"),
    ],
)
def test_a_wrong_row_is_named(read, tmp_path, rows, message):
    if "earlier" in message:
        rows, message = f"{rows}\na.wav,1,2,dog,val", message.replace("row 2", "row 3")
    text = f"filename,onset,offset,label,split\n{rows}\n"
    with refused_exactly(f"{tmp_path}/annotations.csv: {message}"):
        read(TimedData, {"annotations.csv": text})


def test_other_columns_are_pointed_to_the_settings(read, tmp_path):
    with refused_exactly(
        f"{tmp_path}/annotations.csv: expected columns filename, onset, offset, label, found file, start; "
        "--data.filename-column, --data.onset-column, --data.offset-column and --data.label-column name the "
        "columns to read"
    ):
        read(TimedData, {"annotations.csv": "file,start\na,1\n"})


TRACK = "0.500000\t1.250000\tdog\n\\\t100.0\t2000.0\n3.0\t3.0\tdoor slam\n\\\t-1.0\t-1.0\n4,5\t5,25\tdog\n"
"""As Audacity writes it: ranges of frequency follow a label, and a label may be a point."""


def test_label_tracks_of_audacity(read, capsys):
    files = {
        "day 1/a.wav": "",
        "day 1/a.txt": TRACK,
        "b.flac": "",
        "b.txt": "",
        "c.WAV": "",
        "README.txt": "x",
    }
    assert read(AudacityData, files) == {
        "b.flac": events(),
        "day 1/a.wav": events(("dog", 0.5, 1.25), ("door slam", 3, 3), ("dog", 4.5, 5.25)),
    }
    assert capsys.readouterr().out.splitlines() == [
        "audacity: skipped recordings without a label track: 1 (c.WAV)",
        "audacity: skipped text files without a recording beside them: 1 (README.txt)",
    ]


@pytest.mark.parametrize(
    ("track", "message"),
    [
        ("1.0\t2.0\n", "row 1: label: expected an event, got ''"),
        ("1.0\t2.0\tdog\n2.0\t1.0\tdog\n", "row 2: offset: expected at least 2 s (the onset), got 1 s"),
        ("hello world\n", "row 1: onset: expected a time from 0 to 1e+09 s, got 'hello world'"),
    ],
)
def test_a_wrong_label_is_named(read, tmp_path, track, message):
    with refused_exactly(f"{tmp_path}/a.txt: {message}"):
        read(AudacityData, {"a.wav": "", "a.txt": track})


def test_recordings_without_any_label_track_are_refused(read, tmp_path):
    with refused_exactly(
        "--data.root: expected recordings with a label track beside them, x.txt for x.wav, in "
        f"{tmp_path}, found none"
    ):
        read(AudacityData, {"a.wav": "", "b.txt": TRACK})


COLUMNS = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"
VIEWS = ("Waveform 1", "Spectrogram 1")


def selections(*each, columns="Annotation"):
    """A table with both views of each selection: begin, end, and more fields."""
    rows = [
        f"{number}\t{view}\t1\t{begin}\t{end}\t100.0\t2000.0\t" + "\t".join(more)
        for number, (begin, end, *more) in enumerate(each, 1)
        for view in VIEWS
    ]
    return "\n".join([f"{COLUMNS}\t{columns}", *rows]) + "\n"


def test_selection_tables_of_raven_count_each_selection_once(read, capsys):
    files = {
        "a.b.wav": "",
        "a.b.Table.1.selections.txt": selections((1.5, 2, "owl"), (0.25, 1, "owl")),
        "a.b.Table.2.selections.txt": selections((3, 3.5, "frog")),
        "day/c.wav": "",
        "day/c.selections.txt": selections(),
        "old.wav": "",
        "old.selections.txt": selections((1, 2, "owl")).replace("\n", "\r"),
        "d.wav": "",
        "e.Table.1.selections.txt": selections((1, 2, "owl")),
        "notes.txt": "Begin with the owls\n",
    }
    assert read(RavenData, files) == {
        "a.b.wav": events(("owl", 0.25, 1), ("owl", 1.5, 2), ("frog", 3, 3.5)),
        "day/c.wav": events(),
        "old.wav": events(("owl", 1, 2)),
    }
    assert capsys.readouterr().out.splitlines() == [
        "raven: skipped recordings without a selection table: 1 (d.wav)",
        "raven: skipped selection tables without their recording: 1 (e.Table.1.selections.txt)",
    ]


def test_a_selection_table_may_cover_several_recordings(read):
    rows = [
        (1, 2, "one.wav", "1.0", "owl"),
        (61, 63, "two.wav", "1.0", "frog"),
        (70, 71, "two.wav", "10", "owl"),
    ]
    text = selections(*rows, columns="Begin File\tFile Offset (s)\tSpecies")
    assert read(RavenData, {"all.txt": text, "one.wav": "", "x/two.wav": ""}) == {
        "one.wav": events(("owl", 1, 2)),
        "x/two.wav": events(("frog", 1, 3), ("owl", 10, 11)),
    }


def test_tables_of_birdnet_name_recordings_by_their_path_elsewhere(read):
    columns = "Common Name\tConfidence\tBegin Path\tFile Offset (s)"
    one = selections((3, 6, "Barn Owl", "0.9", "C:\\birds\\one.wav", "3.0"), columns=columns)
    paths = ("/birds/one.wav", "/birds/two.wav")
    both = selections(*((3, 6, "Crow", "0.9", path, "3.0") for path in paths), columns=columns)
    files = {"one.flac": "", "one.BirdNET.selection.table.txt": one, "x/one.wav": "", "x/two.wav": ""}
    assert read(RavenData, files | {"x/all.txt": both}) == {
        "x/one.wav": events(("Barn Owl", 3, 6), ("Crow", 3, 6)),
        "x/two.wav": events(("Crow", 3, 6)),
    }


def test_a_table_of_one_recording_may_name_it_with_another_suffix(read):
    text = selections((1, 2, "a.wav", "owl"), columns="Begin File\tSpecies")
    assert read(RavenData, {"a.flac": "", "a.selections.txt": text}) == {"a.flac": events(("owl", 1, 2))}


def test_a_selection_table_with_another_column_of_labels(read, tmp_path):
    files = {"a.wav": "", "a.selections.txt": selections((1, 2, "owl", "call"), columns="Bird\tType")}
    assert read(RavenData, files, label_column="Bird") == {"a.wav": events(("owl", 1, 2))}
    columns = ", ".join(COLUMNS.split("\t"))
    with refused_exactly(
        f"{tmp_path}/a.selections.txt: expected a column Annotation, found {columns}, Bird, Type; "
        "--data.label-column names it"
    ):
        read(RavenData, files)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {
                "all.txt": selections(
                    (1, 2, "a.wav", "owl"), (3, 4, "b.wav", "owl"), columns="Begin File\tSpecies"
                )
            },
            "{root}/all.txt: expected a column File Offset (s), since it covers 2 recordings, found none",
        ),
        (
            {
                "all.txt": selections((1, 2, "a.wav", "owl"), columns="Begin File\tSpecies"),
                "x/a.wav": "",
                "y/a.wav": "",
            },
            "{root}/all.txt: Begin File: expected one recording named a.wav, found 2 (x/a.wav, y/a.wav)",
        ),
        (
            {"a.wav": "", "a.selections.txt": selections((1, 2, ""))},
            "{root}/a.selections.txt: row 2: Annotation: expected an event, got ''",
        ),
        (
            {"a.wav": "", "b.selections.txt": selections((1, 2, "owl"))},
            "--data.root: expected recordings with selection tables, x.Table.1.selections.txt for x.wav, in "
            "{root}, found none",
        ),
    ],
)
def test_wrong_selection_tables_are_named(read, tmp_path, files, message):
    with refused_exactly(message.format(root=tmp_path)):
        read(RavenData, files)


def test_tables_find_their_recordings_in_either_unicode_form(read):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    text = selections((1, 2, f"{composed}.wav", "owl"), columns="Begin File\tSpecies")
    by_column = {"x/all.txt": text, f"x/{decomposed}.wav": "", "y/a.wav": ""}
    assert read(RavenData, by_column) == {f"x/{decomposed}.wav": events(("owl", 1, 2))}
    by_name = {f"z/{decomposed}.selections.txt": selections((1, 2, "owl")), f"z/{composed}.wav": ""}
    assert f"z/{composed}.wav" in read(RavenData, by_name)


def test_label_tracks_find_their_recordings_in_either_unicode_form(read):
    files = {"caf\u00e9.txt": "0\t1\tdog\n", "cafe\u0301.wav": ""}
    assert read(AudacityData, files) == {"cafe\u0301.wav": events(("dog", 0, 1))}


def test_quotes_in_labels_of_audacity_and_raven_are_characters(read):
    labels = '"dog" bark', '"cat', 'cow"'
    track = "".join(f"{start}\t{start + 1}\t{label}\n" for start, label in enumerate(labels))
    expected = events(*((label, start, start + 1) for start, label in enumerate(labels)))
    assert read(AudacityData, {"a.wav": "", "a.txt": track}) == {"a.wav": expected}
    text = selections(*((start, start + 1, label) for start, label in enumerate(labels)))
    assert read(RavenData, {"a.wav": "", "a.selections.txt": text}) == {"a.wav": expected}
