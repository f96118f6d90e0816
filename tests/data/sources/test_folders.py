"""A folder per class, as people and Kaggle keep recordings."""

from collections import Counter

import pytest

from qkd_jax.config import FoldersData, ManifestData
from qkd_jax.data.clip_list import read_clips
from qkd_jax.data.clips import with_splits
from qkd_jax.data.sources.folders import read_folders
from qkd_jax.data.sources.manifest import read_manifest
from tests.faults import refused_exactly


@pytest.fixture
def read(tmp_path):
    """Reads a tree of empty recordings: (name, labels, split) of each."""

    def read(*names, **settings):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        clips = read_folders(FoldersData(root=str(tmp_path), **settings))
        assert all(clip.group == clip.name and clip.root == tmp_path for clip in clips)
        return [(clip.name, *clip.labels, clip.split) for clip in clips]

    return read


def test_top_folders_are_classes_deeper_folders_belong_to_them_and_some_are_negatives(read, capsys):
    names = ["baby_cry/a/b.flac", "dog/001.wav", "dog/002.MP3", "Other/x.wav", "_background_noise_/x.wav"]
    assert sorted(
        read(*names, "README.md", "dog/notes.txt", "dog/.DS_Store", "dog/._001.wav", ".git/x.wav")
    ) == [
        ("Other/x.wav", None),
        ("_background_noise_/x.wav", None),
        ("baby_cry/a/b.flac", "baby_cry", None),
        ("dog/001.wav", "dog", None),
        ("dog/002.MP3", "dog", None),
    ]
    assert capsys.readouterr().out == "folders: negatives in Other, _background_noise_\n"


def test_folders_of_negatives_are_a_setting_and_a_folder_among_the_events_is_a_class(read, capsys):
    names = ["cat/1.wav", "dog/1.wav", "noise/1.wav"]
    assert read(*names, negative_folders=("cat",), events=("dog",)) == [
        ("cat/1.wav", None),
        ("dog/1.wav", "dog", None),
        ("noise/1.wav", "noise", None),
    ]
    assert capsys.readouterr().out == "folders: negatives in cat\n"
    assert read(*names, events=("dog", "noise"))[2] == ("noise/1.wav", "noise", None)
    assert capsys.readouterr().out == ""


def test_folders_named_like_splits_hold_the_folders_of_classes(read):
    names = ["Test/dog/1.wav", "train/dog/1.wav", "train/other/a/1.wav", "validation/cat/1.wav"]
    assert read(*names) == [
        ("Test/dog/1.wav", "dog", "test"),
        ("train/dog/1.wav", "dog", "train"),
        ("train/other/a/1.wav", "train"),
        ("validation/cat/1.wav", "cat", "valid"),
    ]


def test_without_a_folder_for_validation_an_eighth_of_the_training_recordings_is(read):
    names = [f"{split}/{label}/{n}.wav" for split in ("train", "test") for label in "ab" for n in range(32)]
    counts = Counter((split, label) for _, label, split in read(*names))
    assert counts == {
        **{("train", label): 28 for label in "ab"},
        **{("valid", label): 4 for label in "ab"},
        **{("test", label): 32 for label in "ab"},
    }


def test_a_class_may_be_called_train(read):
    assert read("train/1.wav", "tram/1.wav") == [("train/1.wav", "train", None), ("tram/1.wav", "tram", None)]


def test_a_folder_beside_those_of_splits_is_refused(read, tmp_path):
    with refused_exactly(
        "--data.root: expected all recordings in folders named like splits, or none, in "
        f"{tmp_path}, found test, train beside 1 (_unused)"
    ):
        read("train/dog/1.wav", "test/dog/1.wav", "_unused/dog/1.wav")


def test_the_folder_of_recordings_without_labels_is_neither_a_class_nor_beside_splits(read, tmp_path):
    unlabelled = str(tmp_path / "more")
    splits = [("test/dog/1.wav", "dog", "test"), ("train/dog/1.wav", "dog", "train")]
    assert sorted(read("train/dog/1.wav", "test/dog/1.wav", "more/1.wav", unlabelled=unlabelled)) == splits
    root = tmp_path / "train"
    clips = read_clips(FoldersData(root=str(root), unlabelled=str(tmp_path)))  # the root may be in it
    assert [clip.name for clip in clips if clip.labelled] == ["dog/1.wav"]


def test_recordings_outside_the_folders_of_classes_are_reported(read, capsys):
    assert read("dog/1.wav", "2.wav", "3.wav") == [("dog/1.wav", "dog", None)]
    assert capsys.readouterr().out == (
        "folders: skipped recordings outside the folders of classes: 2 (2.wav, 3.wav)\n"
    )


def test_folders_without_recordings_are_reported(read, capsys):
    assert read("train/dog/1.wav", "test/dog/1.wav", "train/cat/1.aup3", "train/.cow/1.wav")
    assert capsys.readouterr().out == "folders: skipped folders without recordings: 1 (cat)\n"


def test_no_folder_of_recordings_is_refused(read, tmp_path):
    error = f"--data.root: expected a folder of recordings per class in {tmp_path}, found none"
    with refused_exactly(error):
        read("1.wav", "dog/notes.txt")
    with refused_exactly("--data.root: expected the folder that contains a folder per class, got none"):
        read_folders(FoldersData())


def test_folders_are_divided_by_class(read, tmp_path):
    read(*(f"{label}/{n}.wav" for label in ("dog", "other") for n in range(50)))
    clips = with_splits(read_clips(FoldersData(root=str(tmp_path))), ("dog",))
    assert Counter((clip.split, *clip.labels) for clip in clips) == {
        ("train", "dog"): 35,
        ("valid", "dog"): 5,
        ("test", "dog"): 10,
        ("train",): 35,
        ("valid",): 5,
        ("test",): 10,
    }


def test_folders_without_a_table_are_pointed_to_this_source(read, tmp_path):
    read("dog/1.wav")
    with refused_exactly(
        f"--data.root: expected a table at {tmp_path}/metadata.csv, found none; --data.source folders reads "
        "a folder per class, --data.source timed, audacity or raven timed labels"
    ):
        read_manifest(ManifestData(root=str(tmp_path)))
