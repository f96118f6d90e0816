import pytest

from qkd_jax.config import AudioSetData
from qkd_jax.data.clips import Clip
from qkd_jax.data.sources.audioset import read_audioset
from tests.faults import refused, refused_exactly

LABELS = """\
index,mid,display_name
0,/m/09x0r,Speech
23,/t/dd00002,"Baby cry, infant cry"
74,/m/0bt9lr,Dog
"""
HEADER = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=22160, num_segs=22160, num_unique_labels=527, num_positive_labels=52882
# YTID, start_seconds, end_seconds, positive_labels
"""
BALANCED = (
    HEADER + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00002"\n_aBcDeFgHiA, 0.000, 9.000, "/m/0bt9lr"\n'
)
EVALUATION = HEADER + 'Y0123456789, 420.000, 430.000, "/m/09x0r"\n'
TABLES = {"balanced_train_segments.csv": BALANCED, "eval_segments.csv": EVALUATION}


@pytest.fixture
def read(tmp_path):
    """Reads AudioSet with the given tables of segments and empty recordings."""

    def read(tables=TABLES, recordings=("--PJHxphWEs.wav",), labels=LABELS, events=()):
        for name, text in {"class_labels_indices.csv": labels, **tables}.items():
            (tmp_path / name).write_text(text)
        for name in recordings:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return read_audioset(AudioSetData(root=str(tmp_path), events=events))

    return read


def test_the_published_layout(read, tmp_path, capsys):
    names = ["a/b/--PJHxphWEs.wav", "a/_aBcDeFgHiA.flac", "Y0123456789.mp3"]
    labels = [{"Speech", "Baby cry, infant cry"}, {"Dog"}, {"Speech"}]
    ids = ["--PJHxphWEs", "_aBcDeFgHiA", "Y0123456789"]
    assert read(recordings=names) == [
        Clip(name=name, root=tmp_path, labels=frozenset(kinds), group=ytid, split=None)
        for name, kinds, ytid in zip(names, labels, ids)
    ]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("times", ["", "_30000", "_30000_40000", "_30.000", "_30.000_40.000", "_30s_40s"])
@pytest.mark.parametrize("extension", [".wav", ".FLAC"])
def test_recordings_are_found_under_the_names_of_all_downloaders(read, tmp_path, times, extension):
    for ytid in ("0a-b_c-d_eA", "-a-b_c-d_eA", "_a-b_c-d_eA", "Ya-b_c-d_eA", "YYa-b_c-d_A"):
        tables = {"eval_segments.csv": f"{ytid}, 30.000, 40.000, /m/0bt9lr\n"}
        for prefix in ("", "Y"):
            name = f"eval/{prefix}{ytid}{times}{extension}"
            assert [(clip.name, clip.group) for clip in read(tables, [name])] == [(name, ytid)]
            (tmp_path / name).unlink()


def test_files_with_other_names_are_ignored_and_the_first_of_several_recordings_by_path_is_used(read):
    # One id is a Y and the first ten characters of the other: the tables decide.
    tables = {"eval_segments.csv": "YabcdefghiA, 0, 10, /m/0bt9lr\nabcdefghiAQ, 0, 10, /m/09x0r\n"}
    groups = {clip.name: clip.group for clip in read(tables, ["YabcdefghiA.wav", "YabcdefghiAQ.wav"])}
    assert groups == {"YabcdefghiA.wav": "YabcdefghiA", "YabcdefghiAQ.wav": "abcdefghiAQ"}
    others = ["--PJHxphWEs.jpg", "--PJHxphWEs.json", "--PJHxphWEsx.wav", "--PJHxphWE.wav", "x--PJHxphWEs.wav"]
    others += ["--PJHxphWEs_vocals.wav", "--PJHxphWEs.wav.part", "._--PJHxphWEs.wav", "--pjhxphwes.wav"]
    assert [clip.name for clip in read(recordings=[*others, "_aBcDeFgHiA.wav"])] == ["_aBcDeFgHiA.wav"]
    names = ["b/--PJHxphWEs.wav", "a/Y--PJHxphWEs.wav", "a/Y--PJHxphWEs.ogg", "c/--PJHxphWEs_30000.wav"]
    names = [clip.name for clip in read(recordings=names) if clip.group == "--PJHxphWEs"]
    assert names == ["a/Y--PJHxphWEs.ogg"]


def test_linked_folders_are_followed_once(read, tmp_path, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    (disk / "--PJHxphWEs.wav").touch()
    (tmp_path / "audio").symlink_to(disk)
    for name in ("a", "b", "c"):
        (tmp_path / name).symlink_to(tmp_path)
    assert [clip.name for clip in read(recordings=())] == ["audio/--PJHxphWEs.wav"]


def test_a_segment_listed_twice_has_the_labels_of_both_rows(read):
    again = '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/m/0bt9lr"\n'
    (clip,) = read({**TABLES, "unbalanced_train_segments.csv": again})
    assert (clip.group, set(clip.labels)) == ("--PJHxphWEs", {"Speech", "Baby cry, infant cry", "Dog"})


def test_segments_without_a_recording_are_reported(read, tmp_path, capsys):
    read(recordings=["_aBcDeFgHiA.wav"], events=("Dog", "Baby cry, infant cry"))
    assert capsys.readouterr().out == (
        f"audioset: 2 of 3 segments have no recording in {tmp_path}; skipped "
        "(Dog 0 of 1; Baby cry, infant cry 1 of 1)\n"
    )
    read(recordings=["_aBcDeFgHiA.wav"])
    assert capsys.readouterr().out.endswith("; skipped\n")


def test_large_numbers_are_printed_with_separators(read, capsys):
    rows = "".join(f"{number:011}, 0, 10, /m/0bt9lr\n" for number in range(2000))
    read({"unbalanced_train_segments.csv": rows}, ["00000000000.wav"], events=("Dog",))
    line = capsys.readouterr().out
    assert "1,999 of 2,000 segments" in line and line.endswith("(Dog 1,999 of 2,000)\n")


COLUMNS = r"class_labels_indices\.csv: expected columns mid, display_name, found index"
MIDS = "positive_labels: expected a MID listed in class_labels_indices.csv, got"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("/m/0bt9lr,/m/09x0r", "expected 4 fields, got 5"),
        (None, "expected 4 fields, got 3"),
        ('"/m/0bt9lr,/m/none"', f"{MIDS} '/m/none'"),
        ('""', f"{MIDS} ''"),
        ('"/m/0bt9lr', "expected a valid CSV row: unexpected end of data"),
    ],
)
def test_a_bad_segment_is_named(read, tmp_path, labels, message):
    row = "_aBcDeFgHiA, 0.000, 9.000" + (f", {labels}" if labels is not None else "")
    with refused_exactly(f"{tmp_path / 'eval_segments.csv'}: row 5: {message}"):
        read({"eval_segments.csv": EVALUATION + row + "\n"})


@pytest.mark.parametrize(
    ("tables", "error"),
    [
        (
            {"tables": {"eval_segments.csv": HEADER}},
            r"eval_segments\.csv: expected at least one row, found none",
        ),
        ({"labels": "index,mid\n0,x\n"}, f"{COLUMNS}, mid"),
        ({"labels": "index\tmid\n0\tx\n"}, f"{COLUMNS}, mid"),
    ],
)
def test_tables_without_rows_or_columns_are_named(read, tmp_path, tables, error):
    with refused(rf"^{tmp_path}/{error}$"):
        read(**tables)


def test_a_missing_root_missing_tables_and_a_set_without_recordings_are_named(read, tmp_path):
    with refused(r"^--data\.root: expected the folder that contains class_labels_indices\.csv, got none$"):
        read_audioset(AudioSetData())
    with refused(r"^--data\.root: expected a table at .*/class_labels_indices\.csv, found none$"):
        read_audioset(AudioSetData(root=str(tmp_path)))
    with refused(rf"^--data\.root: expected at least one of balanced_.*, eval_.* in {tmp_path}, found none$"):
        read({}, recordings=())
    with refused_exactly(f"--data.root: expected recordings named by YouTube ID in {tmp_path}, found none"):
        read(recordings=["x.wav"])


def test_tables_whose_header_has_lost_its_mark_are_read_like_the_published_ones(read):
    lost = BALANCED.replace("# YTID", "YTID")
    assert lost != BALANCED
    names = ["--PJHxphWEs.wav", "_aBcDeFgHiA.wav"]
    expected = read(recordings=names)
    assert read({**TABLES, "balanced_train_segments.csv": lost}) == expected
    only = lost.split("\n", 2)[2]
    assert only.startswith("YTID, start")
    assert read({**TABLES, "balanced_train_segments.csv": only}) == expected


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_class_index_without_its_header_is_read(read, mark):
    expected = read()
    assert read(labels=mark + LABELS.split("\n", 1)[1]) == expected
    assert {*expected[0].labels} == {"Speech", "Baby cry, infant cry"}
