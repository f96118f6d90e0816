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

SHARED = Path(os.environ.get("QKD_SHARED", Path(__file__).parents[4] / "shared"))
RECORDINGS = SHARED / "data" / "aed-real"


ADVICE = r"--data\.filename-column and --data\.labels-column name the columns to read$"


@pytest.fixture
def read(tmp_path):
    """Reads a manifest of the given text."""

    def read(text, encoding="utf-8", **fields):
        config = ManifestData(root=str(tmp_path), **fields)
        (tmp_path / config.manifest).write_text(text, encoding=encoding)
        return read_manifest(config)

    return read


def test_a_comma_separated_manifest(read, tmp_path):
    clips = read(
        "filename,labels,split,group\na.wav,dog; cat ;,train,s1\nb.wav,,valid,s1\nc/d.wav,cat,test,\n"
    )
    assert [clip.name for clip in clips] == ["a.wav", "b.wav", "c/d.wav"]
    assert clips[2].path == tmp_path / "c/d.wav"
    # Blanks around a label are ignored; an empty label is none.
    assert [set(clip.labels) for clip in clips] == [{"dog", "cat"}, set(), {"cat"}]
    assert [clip.split for clip in clips] == ["train", "valid", "test"]
    # A clip without a group forms one by itself.
    assert [clip.group for clip in clips] == ["s1", "s1", "c/d.wav"]


def test_a_tab_separated_manifest_with_other_columns_and_separator(read):
    clips = read(
        "path\ttags\tfold\tspeaker\na.wav\tdog, loud|cat\ttest\tann\n",
        manifest="list.tsv",
        filename_column="path",
        labels_column="tags",
        label_separator="|",
        split_column="fold",
        group_column="speaker",
    )
    assert [(c.name, c.labels, c.split, c.group) for c in clips] == [
        ("a.wav", {"dog, loud", "cat"}, "test", "ann")
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_manifest_is_utf_8_with_or_without_a_byte_order_mark(read, encoding):
    (clip,) = read("filename,labels,split\na.wav,bébé;犬,train\n", encoding=encoding)
    assert (clip.name, clip.labels) == ("a.wav", {"bébé", "犬"})


def test_without_a_split_column_there_are_no_splits(read):
    assert [clip.split for clip in read("filename,labels\na.wav,dog\nb.wav,\n")] == [None, None]


def test_names_of_recordings_are_normalised(read, tmp_path):
    clips = read("filename,labels\n./a.wav,dog\nc//d.wav,\nc/../b.wav,\n")
    assert [clip.name for clip in clips] == ["a.wav", "c/d.wav", "b.wav"]
    assert clips[1].path == tmp_path / "c/d.wav"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected columns filename, labels, found none"),
        ("name,labels\na.wav,dog\n", f"expected columns filename, labels, found name, labels; {ADVICE}"),
        ("filename,tags\na.wav,dog\n", f"expected columns filename, labels, found filename, tags; {ADVICE}"),
        ("filename;labels\na.wav;dog\n", "columns seem to be separated by semicolons, expected commas$"),
        (
            "filename\tlabels\na.wav\tdog\n",
            r"separated by tabs, expected commas or a name ending in \.tsv \(--data\.manifest\)$",
        ),
        ("filename,labels\n", "expected at least one row, found none"),
        (
            "filename,labels,split\na.wav,,train\nb.wav,,dev\n",
            "row 3: split: expected train, valid or test, got 'dev'",
        ),
        ("filename,labels,split\na.wav,,train\nb.wav,,\n", "row 3: split: expected train.*, got ''"),
        (
            "filename,labels\na.wav,\n./a.wav,dog\n",
            r"row 3: filename: expected each recording once, found a\.wav also in row 2",
        ),
        (
            "filename,labels\n../a.wav,\n",
            r"row 2: filename: expected a path within --data\.root, got '\.\./a\.wav'",
        ),
        ("filename,labels\nc/../../a.wav,\n", r"row 2: filename: expected a path within"),
        (
            "filename,labels\n/etc/passwd,\n",
            r"row 2: filename: expected a path within --data\.root, got '/etc/passwd'",
        ),
        ("filename,labels\n,dog\n", "row 2: filename: expected a path within .*, got ''"),
        ("filename,labels\na.wav\n", "row 2: expected 2 fields, got 1"),
        ('filename,labels\n"a.wav,dog\n', "row 2: expected a valid CSV row"),
    ],
)
def test_errors_name_the_row_the_column_and_the_value(read, text, message):
    with pytest.raises(InputError, match=rf"metadata\.csv: .*{message}") as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_a_manifest_without_tabs_whose_name_ends_in_tsv_is_refused(read):
    error = r"separated by commas, expected tabs or a name ending in \.csv \(--data\.manifest\)$"
    with pytest.raises(InputError, match=rf"list\.tsv: .*{error}"):
        read("filename,labels\na.wav,dog\n", manifest="list.tsv")


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


def test_a_manifest_in_another_encoding_is_named(read):
    for encoding in ("latin-1", "utf-16"):
        with pytest.raises(InputError, match=r"metadata\.csv: expected a table in UTF-8"):
            read("filename,labels,split\na.wav,bébé,train\n", encoding=encoding)


def test_a_missing_root_or_manifest_is_named(tmp_path):
    with pytest.raises(InputError, match=r"^--data\.root: expected the folder that contains metadata\.csv"):
        read_manifest(ManifestData())
    with pytest.raises(InputError, match=r"^--data\.root: expected a table at .*list\.tsv, found none"):
        read_manifest(ManifestData(root=str(tmp_path), manifest="list.tsv"))


def test_the_shared_recordings_are_read_as_their_readme_lists_them():
    if not (RECORDINGS / "metadata.csv").is_file():
        pytest.skip(
            f"needs the recordings in {RECORDINGS}; set QKD_SHARED to the folder that holds data/aed-real"
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
