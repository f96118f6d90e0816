import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.config import ManifestData
from qkd_jax.data.clips import SPLITS
from qkd_jax.data.sources.manifest import read_manifest
from qkd_jax.errors import InputError
from tests.faults import refused, refused_in_one_line

SHARED = Path(os.environ.get("QKD_SHARED", Path(__file__).parents[4] / "shared"))
RECORDINGS = SHARED / "data" / "aed-real"


ADVICE = r"--data\.filename-column and --data\.labels-column name the columns to read$"


@pytest.fixture
def read(tmp_path):
    """Reads a manifest of the given text."""

    def read(text, **fields):
        config = ManifestData(root=str(tmp_path), **fields)
        (tmp_path / config.manifest).write_text(text)
        return read_manifest(config)

    return read


def test_a_comma_separated_manifest(read, tmp_path):
    rows = ["a.wav,dog; cat ;,train,s1", "./b.wav,,valid,s1", "c//d.wav,cat,test,", "c/../e.wav,,test,"]
    clips = read("\n".join(["filename,labels,split,group", *rows]) + "\n")
    # Names are normalised; blanks around a label are ignored; an empty label is none.
    assert [clip.name for clip in clips] == ["a.wav", "b.wav", "c/d.wav", "e.wav"]
    assert clips[2].path == tmp_path / "c/d.wav"
    assert [set(clip.labels) for clip in clips] == [{"dog", "cat"}, set(), {"cat"}, set()]
    assert [clip.split for clip in clips] == ["train", "valid", "test", "test"]
    # A clip without a group forms one by itself.
    assert [clip.group for clip in clips] == ["s1", "s1", "c/d.wav", "e.wav"]


def test_a_tab_separated_manifest_with_other_columns_and_separator(read):
    columns = {"filename": "path", "labels": "tags", "split": "fold", "group": "speaker"}
    fields = {f"{name}_column": column for name, column in columns.items()}
    text = "path\ttags\tfold\tspeaker\na.wav\tdog, loud|cat\ttest\tann\n"
    (clip,) = read(text, manifest="list.tsv", label_separator="|", **fields)
    held = (clip.name, clip.labels, clip.split, clip.group)
    assert held == ("a.wav", {"dog, loud", "cat"}, "test", "ann")
    # Without a column of splits there are none.
    assert [clip.split for clip in read("filename,labels\na.wav,dog\nb.wav,\n")] == [None, None]


ROW = "row 3: split: expected train"
WITHIN = r"row 2: filename: expected a path within --data\.root, got"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected columns filename, labels, found none"),
        ("name,labels\na.wav,dog\n", f"expected columns filename, labels, found name, labels; {ADVICE}"),
        ("filename,tags\na.wav,dog\n", f"expected columns filename, labels, found filename, tags; {ADVICE}"),
        ("filename,labels\n", "expected at least one row, found none"),
        ("filename,labels,split\na.wav,,train\nb.wav,,fold1\n", f"{ROW} .*, got 'fold1'"),
        ("filename,labels,split\na.wav,,train\nb.wav,,\n", f"{ROW}.*, got ''"),
        ("filename,labels\na.wav,\n./a.wav,dog\n", r"row 3: filename: .* once, found a\.wav also in row 2"),
        ("filename,labels\n..\\a.wav,\n", rf"{WITHIN} '\.\.\\\\a\.wav'"),
        ("filename,labels\n../a.wav,\n", rf"{WITHIN} '\.\./a\.wav'"),
        ("filename,labels\nc/../../a.wav,\n", WITHIN),
        ("filename,labels\n/etc/passwd,\n", rf"{WITHIN} '/etc/passwd'"),
        ("filename,labels\n,dog\n", f"{WITHIN} ''"),
        ("filename,labels\na.wav\n", "row 2: expected 2 fields, got 1"),
        ('filename,labels\n"a.wav,dog\n', "row 2: expected a valid CSV row"),
    ],
)
def test_errors_name_the_row_the_column_and_the_value(read, text, message):
    with refused_in_one_line(rf"metadata\.csv: .*{message}"):
        read(text)


def test_a_table_of_excel(read, tmp_path):
    text = "sep=;\r\nFilename;Labels;Split;Group\r\na.wav ;dog, loud|cat;Train;x\r\nb.wav;;VAL;y\r\n;;;\r\n"
    (tmp_path / "metadata.csv").write_bytes(text.encode("utf-16"))
    clips = read_manifest(ManifestData(root=str(tmp_path), label_separator="|"))
    expected = [("a.wav", {"dog, loud", "cat"}, "train", "x"), ("b.wav", set(), "valid", "y")]
    assert [(clip.name, clip.labels, clip.split, clip.group) for clip in clips] == expected


@given(st.text(alphabet="ab./", min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_no_recording_is_outside_the_root(name):
    root = Path("/data/root")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "metadata.csv").write_text(f"filename,labels\n{name},\n")
        try:
            clip = read_manifest(ManifestData(root=folder))[0]
        except InputError:
            assert not Path(os.path.normpath(root / name)).is_relative_to(root) or name.startswith("/")
        else:
            assert Path(os.path.normpath(root / clip.name)).is_relative_to(root)


def test_a_missing_root_or_manifest_is_named(tmp_path):
    with refused(r"^--data\.root: expected the folder that contains metadata\.csv"):
        read_manifest(ManifestData())
    with refused(r"^--data\.root: expected a table at .*list\.tsv, found none"):
        read_manifest(ManifestData(root=str(tmp_path), manifest="list.tsv"))


def test_the_shared_recordings_are_read_as_their_readme_lists_them():
    if not (RECORDINGS / "metadata.csv").is_file():
        pytest.skip(
            f"needs the recordings in {RECORDINGS}; set QKD_SHARED to the folder that contains data/aed-real"
        )
    clips = read_manifest(ManifestData(root=str(RECORDINGS), group_column="source_id"))

    assert len(clips) == 4838
    counts = Counter((clip.split, label) for clip in clips for label in clip.labels or {"negatives"})
    kinds = ("dog", "baby_cry", "gunshot", "negatives")
    # The table of the recordings' README.
    assert {split: [counts[split, kind] for kind in kinds] for split in SPLITS} == {
        "train": [382, 319, 338, 2670],
        "valid": [55, 53, 84, 387],
        "test": [55, 42, 90, 363],
    }
    assert len({(clip.group, clip.split) for clip in clips}) == len({clip.group for clip in clips})
