import os
from collections import Counter
from pathlib import Path

import pytest

from qkd_jax.config import DataConfig, FeatureConfig, InputError
from qkd_jax.data.clips import SPLITS
from qkd_jax.data.manifest import read_manifest
from qkd_jax.data.source import read_clips

SHARED = Path(os.environ.get("QKD_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "aed-real"


@pytest.fixture
def read(tmp_path):
    """Reads a manifest of the given text beside the files a.wav, b.wav and c/d.wav."""
    (tmp_path / "c").mkdir()
    for name in ("a.wav", "b.wav", "c/d.wav"):
        (tmp_path / name).touch()

    def read(text, encoding="utf-8", **fields):
        config = DataConfig(root=str(tmp_path), **fields)
        (tmp_path / config.manifest).write_text(text, encoding=encoding)
        return read_manifest(config)

    return read


def test_a_comma_separated_manifest(read, tmp_path):
    clips = read(
        "filename,labels,split,group\na.wav,dog; cat ;,train,s1\nb.wav,,valid,s1\nc/d.wav,cat,test,\n"
    )
    assert [clip.name for clip in clips] == ["a.wav", "b.wav", "c/d.wav"]
    assert clips[2].path == tmp_path / "c/d.wav"
    # Blanks around a label don't count, nothing is no label.
    assert [set(clip.labels) for clip in clips] == [{"dog", "cat"}, set(), {"cat"}]
    assert [clip.split for clip in clips] == ["train", "valid", "test"]
    # A clip without a group is one of its own.
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


def test_a_byte_order_mark_is_no_part_of_the_first_column(read):
    assert read("filename,labels,split\na.wav,dog,train\n", encoding="utf-8-sig")[0].name == "a.wav"


def test_labels_beyond_ascii(read):
    assert read("filename,labels,split\na.wav,bébé;犬,train\n")[0].labels == {"bébé", "犬"}


def test_without_a_split_column_groups_are_divided(read, tmp_path):
    clips = read("filename,labels,group\na.wav,dog,s1\nb.wav,dog,s1\nc/d.wav,,s2\n")
    assert [clip.split for clip in clips] == [None] * 3
    divided = read_clips(DataConfig(root=str(tmp_path)), FeatureConfig())
    assert {clip.split for clip in divided} <= set(SPLITS)
    assert divided[0].split == divided[1].split


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'filename', but the columns are none"),
        ("name,labels\na.wav,dog\n", "'filename', but the columns are name, labels"),
        ("filename,tags\na.wav,dog\n", "labels_column is 'labels', but the columns are filename, tags"),
        ("filename,labels\n", "expected a row for each recording, found none"),
        ("filename,labels\na.wav,\nx.wav,\ny.wav,\n", r"2 of 3 files are not there, first x\.wav"),
        (
            "filename,labels,split\na.wav,,train\nb.wav,,dev\n",
            "row 3: split: .*train, valid, test, got 'dev'",
        ),
        ("filename,labels\na.wav,\nb.wav,\na.wav,dog\n", r"1 files have more than one row, first a\.wav"),
        ("labels,split,filename\ndog,train\n", "row 2"),  # a row that ends before its file's name
    ],
)
def test_errors_say_where_and_what_was_found(read, text, message):
    with pytest.raises(InputError, match=rf"metadata\.csv: .*{message}"):
        read(text)


def test_a_manifest_in_another_encoding_is_named(read):
    with pytest.raises(InputError, match=r"metadata\.csv"):
        read("filename,labels,split\na.wav,bébé,train\n", encoding="latin-1")


def test_no_root_and_no_manifest(tmp_path):
    with pytest.raises(InputError, match=r"data\.root: expected the folder that holds metadata\.csv"):
        read_manifest(DataConfig())
    with pytest.raises(InputError, match=r"data\.root: expected a manifest at .*list\.tsv, found none"):
        read_manifest(DataConfig(root=str(tmp_path), manifest="list.tsv"))


def test_the_real_recordings():
    if not (REAL / "metadata.csv").is_file():
        pytest.skip(f"needs the recordings in {REAL}; set QKD_SHARED to the folder that holds data/aed-real")
    clips = read_manifest(DataConfig(root=str(REAL), group_column="source_id"))

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
