"""DESED as published, and sets like it; recordings are empty files, since no source opens them."""

import shutil

import pytest

from qkd_jax.config import DESEDData
from qkd_jax.data.clip_list import read_clips
from qkd_jax.data.clips import Annotation
from qkd_jax.data.sources.desed import read_desed
from qkd_jax.errors import InputError

STRONG = "filename\tonset\toffset\tevent_label\n"
DURATIONS = "filename\tduration\n"
PUBLISHED = {
    "metadata/train/weak.tsv": "filename\tevent_labels\nYb.wav\tSpeech\nYa.wav\tAlarm_bell_ringing,Dog\n",
    "metadata/train/unlabel_in_domain.tsv": "filename\nYd.wav\nYc.wav\n",
    "metadata/train/synthetic21_train/soundscapes.tsv": (
        STRONG + "8.wav\t0.163\t0.665\tDog\n7.wav\t1\t2\tCat\n8.wav\t0.500\t10.049\tSpeech\n"
    ),
    "metadata/train/synthetic21_train/durations.tsv": DURATIONS + "7.wav\t10.0\n9.wav\t10.0\n",
    "metadata/train/audioset_strong.tsv": STRONG + "Ye.wav\t0.0\t10.0\tFrying\n",
    "metadata/validation/synthetic21_validation/soundscapes.tsv": STRONG + "1.wav\t3.5\t4\tCat\n",
    # Recordings without events: the second row is as published, the third without its trailing tabs.
    "metadata/validation/validation.tsv": STRONG + "Yf.wav\t0.000\t9.971\tCat\nYg.wav\t\t\t\nYh.wav\n",
    "metadata/eval/public.tsv": STRONG + "Yi.wav\t0.000\t9.971\tDishes\n",
}
AUDIO = [
    "audio/train/weak",
    "audio/train/unlabel_in_domain",
    "audio/train/synthetic21_train/soundscapes",
    "audio/train/strong_label_real",
    "audio/validation/synthetic21_validation/soundscapes",
    "audio/validation/validation",
    "audio/eval/public",
]
PLAIN = {
    f"{split}/{table}": text.replace("SPLIT", split)
    for split in ("train", "valid", "test")
    for table, text in {
        "strong.tsv": STRONG + "SPLIT_1.flac\t0.5\t1.25\tdog\nSPLIT_0.flac\t0\t2\tcat\n",
        "weak.tsv": "filename\tevent_labels\nSPLIT_1.flac\tdog\nSPLIT_0.flac\tcat\nSPLIT_2.flac\t\n",
        "durations.tsv": DURATIONS + "SPLIT_0.flac\t2.0\nSPLIT_1.flac\t2.0\nSPLIT_2.flac\t2.0\n",
    }.items()
}


@pytest.fixture
def read(tmp_path):
    """Writes and reads a set of tables, folders of recordings, and recordings."""
    root = tmp_path / "set"

    def read(tables, folders=None, recordings=(), **settings):
        if folders is None:
            folders = (
                AUDIO if "metadata/train/weak.tsv" in tables else ["train/audio", "valid/audio", "test/audio"]
            )
        shutil.rmtree(root, ignore_errors=True)
        for name in (*folders, *tables, *recordings):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        for folder in folders:
            (root / folder).mkdir(exist_ok=True)
        for name, text in (tables | dict.fromkeys(recordings, "")).items():
            (root / name).write_text(text)
        return read_desed(DESEDData(root=str(root), **settings))

    return read


def described(clips):
    """Name, kind, and annotations, or labels where there are none, of each clip."""
    return [
        (clip.name, clip.kind, set(clip.labels) if clip.annotations is None else list(clip.annotations))
        for clip in clips
    ]


def test_desed_is_read_as_published(read, tmp_path, capsys):
    clips = read(PUBLISHED)
    train, valid, test = ([clip for clip in clips if clip.split == s] for s in ("train", "valid", "test"))
    assert described(train) == [
        ("audio/train/weak/Ya.wav", "weak", {"Alarm_bell_ringing", "Dog"}),
        ("audio/train/weak/Yb.wav", "weak", {"Speech"}),
        ("audio/train/unlabel_in_domain/Yc.wav", "unlabelled", set()),
        ("audio/train/unlabel_in_domain/Yd.wav", "unlabelled", set()),
        ("audio/train/synthetic21_train/soundscapes/7.wav", "strong", [("Cat", 1, 2)]),
        (
            "audio/train/synthetic21_train/soundscapes/8.wav",
            "strong",
            [("Dog", 0.163, 0.665), ("Speech", 0.5, 10.049)],
        ),
        ("audio/train/synthetic21_train/soundscapes/9.wav", "strong", []),
        ("audio/train/strong_label_real/Ye.wav", "strong", [("Frying", 0, 10)]),
    ]
    assert described(valid) == [
        ("audio/validation/synthetic21_validation/soundscapes/1.wav", "strong", [("Cat", 3.5, 4)])
    ]
    assert described(test) == [
        ("audio/validation/validation/Yf.wav", "strong", [("Cat", 0, 9.971)]),
        ("audio/validation/validation/Yg.wav", "strong", []),
        ("audio/validation/validation/Yh.wav", "strong", []),
    ]
    for clip in clips:
        assert clip.path == tmp_path / "set" / clip.name and clip.group == clip.name
        assert clip.annotations is None or clip.labels == {each.event for each in clip.annotations}
    assert capsys.readouterr().out == ""


def test_a_set_like_desed_is_read(read):
    clips = read(PLAIN)
    assert described(clips) == [
        (f"{split}/audio/{split}_{index}.flac", "strong", annotations)
        for split in ("train", "valid", "test")
        for index, annotations in enumerate([[("cat", 0, 2)], [("dog", 0.5, 1.25)], []])
    ]
    assert [clip.split for clip in clips] == ["train"] * 3 + ["valid"] * 3 + ["test"] * 3
    assert all(isinstance(each, Annotation) for clip in clips for each in clip.annotations)


def test_weak_labels_and_durations_each_list_recordings_without_events(read):
    whole = described(read(PLAIN))
    for table in ("weak.tsv", "durations.tsv"):
        assert described(read({name: text for name, text in PLAIN.items() if table not in name})) == whole
    strong = {name: text for name, text in PLAIN.items() if "strong" in name}
    assert described(read(strong)) == [clip for clip in whole if "_2.flac" not in clip[0]]


def test_weak_labels_may_complement_strong_ones(read):
    clips = read(PLAIN | {"train/weak.tsv": "filename\tevent_labels\ntrain_3.flac\tdog, cat\n"})
    assert described(clips)[3] == ("train/audio/train_3.flac", "weak", {"dog", "cat"})


@pytest.mark.parametrize(("copies", "chosen"), [(["-16k"], "-16k"), (["-16k", "_16k"], "_16k")])
def test_copies_at_16_khz_are_preferred(read, copies, chosen):
    folders = [folder + copy for folder in AUDIO[:3] for copy in copies]
    names = [clip.name for clip in read(PUBLISHED, AUDIO + folders)]
    assert f"audio/train/weak{chosen}/Ya.wav" in names
    assert f"audio/train/unlabel_in_domain{chosen}/Yc.wav" in names
    assert f"audio/train/synthetic21_train/soundscapes{chosen}/7.wav" in names
    assert "audio/train/strong_label_real/Ye.wav" in names
    assert len(names) == 12


def test_without_a_table_all_unlabelled_recordings_in_the_folder_are_read(read):
    tables = {name: text for name, text in PUBLISHED.items() if "unlabel" not in name}
    files = [f"{AUDIO[1]}/{name}" for name in ("Yz.wav", "Yc.FLAC", "Yc.txt", ".listing")]
    unlabelled = [clip.name for clip in read(tables, recordings=files) if not clip.labelled]
    assert unlabelled == [f"{AUDIO[1]}/{name}" for name in ("Yc.FLAC", "Yz.wav")]


def test_missing_parts_are_left_out_and_named(read, tmp_path, capsys):
    tables = {name: text for name, text in PUBLISHED.items() if "audioset_strong" not in name}
    clips = read(tables, AUDIO[1:])
    assert {clip.name.split("/")[2] for clip in clips if clip.split == "train"} == {
        "unlabel_in_domain",
        "synthetic21_train",
    }
    assert capsys.readouterr().out == (
        "desed: skipped audio/train/weak, audio/train/strong_label_real: "
        f"folder or table missing in {tmp_path / 'set'}\n"
    )


def test_clips_for_validation_are_required(read, tmp_path):
    tables = {name: text for name, text in PUBLISHED.items() if "synthetic21_validation" not in name}
    with pytest.raises(InputError) as error:
        read(tables)
    assert str(error.value) == (
        "--data.root: expected metadata/validation/synthetic21_validation/soundscapes.tsv with its audio "
        f"folder in {tmp_path / 'set'}, found neither"
    )


def test_a_missing_root_or_set_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"^--data\.root: expected the folder that contains DESED.*, got none$"
    ):
        read_desed(DESEDData())
    with pytest.raises(InputError) as error:
        read_desed(DESEDData(root=str(tmp_path)))
    assert str(error.value) == (
        "--data.root: expected train/strong.tsv with its audio folder, or DESED's metadata folder, "
        f"in {tmp_path}, found neither"
    )


@pytest.mark.parametrize(
    ("table", "row", "error"),
    [
        ("strong", "a.flac\tx\t2\tdog", "onset: expected a time from 0 to 1e+09 s, got 'x'"),
        ("strong", "a.flac\t-0.5\t2\tdog", "onset: expected a time from 0 to 1e+09 s, got '-0.5'"),
        ("strong", "a.flac\tnan\t2\tdog", "onset: expected a time from 0 to 1e+09 s, got 'nan'"),
        ("strong", "a.flac\t\t2\tdog", "onset: expected a time from 0 to 1e+09 s, got ''"),
        ("strong", "a.flac\t1\t1e300\tdog", "offset: expected a time from 0 to 1e+09 s, got '1e300'"),
        ("strong", "a.flac\t1\tinf\tdog", "offset: expected a time from 0 to 1e+09 s, got 'inf'"),
        ("strong", "a.flac\t1", "offset: expected a time from 0 to 1e+09 s, got ''"),
        ("strong", "a.flac\t1.5\t1.5\tdog", "offset: expected more than 1.5 s (the onset), got 1.5 s"),
        ("strong", "a.flac\t2\t1\tdog", "offset: expected more than 2 s (the onset), got 1 s"),
        ("strong", "a.flac\t1\t2\t", "event_label: expected an event, got ''"),
        ("strong", "../a.flac\t1\t2\tdog", "filename: expected a path within --data.root, got '../a.flac'"),
        ("strong", "a.flac\t1\t2\tdog\tx", "expected 4 fields, got 5"),
        ("weak", "/a.flac\tdog", "filename: expected a path within --data.root, got '/a.flac'"),
        (
            "weak",
            "train_1.flac\tdog",
            "filename: expected each recording once, found train_1.flac also in row 2",
        ),
        ("durations", "../../a.flac\t10", "filename: expected a path within --data.root, got '../../a.flac'"),
        (
            "durations",
            "train_0.flac\t10",
            "filename: expected each recording once, found train_0.flac also in row 2",
        ),
    ],
)
def test_a_wrong_row_is_named(read, tmp_path, table, row, error):
    path = f"train/{table}.tsv"
    line = PLAIN[path].count("\n") + 1
    with pytest.raises(InputError) as caught:
        read(PLAIN | {path: PLAIN[path] + row + "\n"})
    assert str(caught.value) == f"{tmp_path / 'set' / path}: row {line}: {error}"


def test_contradictory_tables_are_named(read, tmp_path):
    with pytest.raises(InputError) as error:
        read(PLAIN | {"valid/weak.tsv": "filename\tevent_labels\nvalid_0.flac\tcat,dog\n"})
    assert str(error.value) == (
        f"{tmp_path / 'set/valid/weak.tsv'}: row 2: event_labels: expected 'cat', as in valid/strong.tsv, "
        "got 'cat,dog'"
    )


@pytest.mark.parametrize(("table", "columns"), [("strong", "filename, onset"), ("weak", "filename, event_l")])
@pytest.mark.parametrize(
    ("header", "found"),
    [("file", "file"), ("a,b", "a,b; columns seem to be separated by commas, expected tabs")],
)
def test_a_missing_column_is_named(read, table, columns, header, found):
    with pytest.raises(InputError, match=rf"{table}\.tsv: expected columns {columns}.*, found {found}$"):
        read(PLAIN | {f"test/{table}.tsv": f"{header}\nx\n"})


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, "ssss"),
        ({"strong": 1, "weak": 2}, "swwu"),
        ({"strong": 3}, "sssu"),
        ({"weak": 1}, "wuuu"),
        ({"strong": 9, "weak": 9}, "ssss"),
    ],
)
@pytest.mark.parametrize("layout", ["published", "plain"])
def test_labels_are_removed_as_configured(read, layout, settings, kinds):
    if layout == "plain":
        rows = "train_3.flac\t0.5\t1.5\tcat\n"
        tables = PLAIN | {"train/strong.tsv": PLAIN["train/strong.tsv"] + rows}
    else:
        tables = PUBLISHED
    clips, whole = read(tables, **settings), read(tables)
    # In the order of their names: strong_label_real before synthetic21_train.
    strong = sorted(clip.name for clip in whole if clip.split == "train" and clip.annotations is not None)
    by_name = {clip.name: clip for clip in clips}
    assert "".join(by_name[name].kind[0] for name in strong) == kinds
    for before in whole:
        after = by_name[before.name]
        if before.name not in strong or after.kind == "strong":
            assert after == before
        assert after.labels == (before.labels if after.labelled else set())


def test_events_and_negatives_are_chosen_by_the_remaining_labels(read, tmp_path):
    read(PLAIN)
    root = str(tmp_path / "set")
    config = DESEDData(root=root, events=("cat",), strong=1, weak=1, negatives=1)
    clips = read_clips(config)
    # One of five negatives is kept; the unlabelled clip is not a negative.
    assert [clip.name for clip in clips if not clip.labelled] == ["train/audio/train_2.flac"]
    assert sum(clip.labelled and "cat" not in clip.labels for clip in clips) == 1
    with pytest.raises(InputError, match=r"expected one of cat \(3\), dog \(3\), got 'cow'"):
        read_clips(DESEDData(root=root, events=("cow",)))
