"""DESED as published, and sets like it; recordings are empty files, since no source opens them."""

import shutil

import pytest

from qkd_jax.config import DESEDData
from qkd_jax.data.clip_list import read_clips
from qkd_jax.data.clips import Annotation
from qkd_jax.data.sources.desed import read_desed
from tests.faults import refused, refused_exactly

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
    *("audio/train/weak", "audio/train/unlabel_in_domain", "audio/train/synthetic21_train/soundscapes"),
    *("audio/train/strong_label_real", "audio/validation/synthetic21_validation/soundscapes"),
    *("audio/validation/validation", "audio/eval/public"),
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
            plain = ["train/audio", "valid/audio", "test/audio"]
            folders = AUDIO if "metadata/train/weak.tsv" in tables else plain
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
    held = [set(clip.labels) if clip.annotations is None else list(clip.annotations) for clip in clips]
    return [(clip.name, clip.kind, each) for clip, each in zip(clips, held)]


def without(tables, name):
    return {path: text for path, text in tables.items() if name not in path}


def test_desed_is_read_as_published(read, tmp_path, capsys):
    clips = read(PUBLISHED)
    train, valid, test = ([clip for clip in clips if clip.split == s] for s in ("train", "valid", "test"))
    weak, unlabelled, synthetic, real, validation, test_audio, _ = (f"{folder}/" for folder in AUDIO)
    assert described(train) == [
        (weak + "Ya.wav", "weak", {"Alarm_bell_ringing", "Dog"}),
        (weak + "Yb.wav", "weak", {"Speech"}),
        (unlabelled + "Yc.wav", "unlabelled", set()),
        (unlabelled + "Yd.wav", "unlabelled", set()),
        (synthetic + "7.wav", "strong", [("Cat", 1, 2)]),
        (synthetic + "8.wav", "strong", [("Dog", 0.163, 0.665), ("Speech", 0.5, 10.049)]),
        (synthetic + "9.wav", "strong", []),
        (real + "Ye.wav", "strong", [("Frying", 0, 10)]),
    ]
    assert described(valid) == [(validation + "1.wav", "strong", [("Cat", 3.5, 4)])]
    assert described(test) == [
        (test_audio + "Yf.wav", "strong", [("Cat", 0, 9.971)]),
        (test_audio + "Yg.wav", "strong", []),
        (test_audio + "Yh.wav", "strong", []),
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


def test_weak_labels_complement_strong_ones_and_list_recordings_without_events_as_durations_do(read):
    whole = described(read(PLAIN))
    for table in ("weak.tsv", "durations.tsv"):
        assert described(read(without(PLAIN, table))) == whole
    weak = {"train/weak.tsv": "filename\tevent_labels\ntrain_3.flac\tdog, cat\n"}
    assert described(read(PLAIN | weak))[3] == ("train/audio/train_3.flac", "weak", {"dog", "cat"})
    strong = {name: text for name, text in PLAIN.items() if "strong" in name}
    assert described(read(strong)) == [clip for clip in whole if "_2.flac" not in clip[0]]


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
    tables = without(PUBLISHED, "unlabel")
    files = [f"{AUDIO[1]}/{name}" for name in ("Yz.wav", "Yc.FLAC", "Yc.txt", ".listing")]
    unlabelled = [clip.name for clip in read(tables, recordings=files) if not clip.labelled]
    assert unlabelled == [f"{AUDIO[1]}/{name}" for name in ("Yc.FLAC", "Yz.wav")]


def test_missing_parts_are_left_out_and_named_unless_they_are_for_validation(read, tmp_path, capsys):
    clips = read(without(PUBLISHED, "audioset_strong"), AUDIO[1:])
    parts = {clip.name.split("/")[2] for clip in clips if clip.split == "train"}
    assert parts == {"unlabel_in_domain", "synthetic21_train"}
    assert capsys.readouterr().out == (
        "desed: skipped audio/train/weak, audio/train/strong_label_real: "
        f"folder or table missing in {tmp_path / 'set'}\n"
    )
    table = "metadata/validation/synthetic21_validation/soundscapes.tsv"
    with refused_exactly(
        f"--data.root: expected {table} with its audio folder in {tmp_path / 'set'}, found neither"
    ):
        read(without(PUBLISHED, "synthetic21_validation"))


SECONDS = "expected a time from 0 to 1e+09 s, got"
WITHIN = "filename: expected a path within --data.root, got"
ONCE = "filename: expected each recording once, found"


@pytest.mark.parametrize(
    ("table", "row", "error"),
    [
        ("strong", "a.flac\tx\t2\tdog", f"onset: {SECONDS} 'x'"),
        ("strong", "a.flac\t-0.5\t2\tdog", f"onset: {SECONDS} '-0.5'"),
        ("strong", "a.flac\tnan\t2\tdog", f"onset: {SECONDS} 'nan'"),
        ("strong", "a.flac\t\t2\tdog", f"onset: {SECONDS} ''"),
        ("strong", "a.flac\t1\t1e300\tdog", f"offset: {SECONDS} '1e300'"),
        ("strong", "a.flac\t1\tinf\tdog", f"offset: {SECONDS} 'inf'"),
        ("strong", "a.flac\t1", f"offset: {SECONDS} ''"),
        ("strong", "a.flac\t1.5\t1.5\tdog", "offset: expected more than 1.5 s (the onset), got 1.5 s"),
        ("strong", "a.flac\t2\t1\tdog", "offset: expected more than 2 s (the onset), got 1 s"),
        ("strong", "a.flac\t1\t2\t", "event_label: expected an event, got ''"),
        ("strong", "../a.flac\t1\t2\tdog", f"{WITHIN} '../a.flac'"),
        ("strong", "a.flac\t1\t2\tdog\tx", "expected 4 fields, got 5"),
        ("weak", "/a.flac\tdog", f"{WITHIN} '/a.flac'"),
        ("weak", "train_1.flac\tdog", f"{ONCE} train_1.flac also in row 2"),
        ("durations", "../../a.flac\t10", f"{WITHIN} '../../a.flac'"),
        ("durations", "train_0.flac\t10", f"{ONCE} train_0.flac also in row 2"),
    ],
)
def test_a_wrong_row_is_named(read, tmp_path, table, row, error):
    path = f"train/{table}.tsv"
    line = PLAIN[path].count("\n") + 1
    with refused_exactly(f"{tmp_path / 'set' / path}: row {line}: {error}"):
        read(PLAIN | {path: PLAIN[path] + row + "\n"})


@pytest.mark.parametrize(("table", "columns"), [("strong", "filename, onset"), ("weak", "filename, event_l")])
def test_a_missing_column_is_named(read, table, columns):
    with refused(rf"{table}\.tsv: expected columns {columns}.*, found file$"):
        read(PLAIN | {f"test/{table}.tsv": "file\nx\n"})


def test_contradictory_tables_and_a_missing_root_or_set_are_named(read, tmp_path):
    path, expected = tmp_path / "set/valid/weak.tsv", "expected 'cat', as in valid/strong.tsv, got 'cat,dog'"
    with refused_exactly(f"{path}: row 2: event_labels: {expected}"):
        read(PLAIN | {"valid/weak.tsv": "filename\tevent_labels\nvalid_0.flac\tcat,dog\n"})
    with refused(r"^--data\.root: expected the folder that contains DESED.*, got none$"):
        read_desed(DESEDData())
    expected = "expected train/strong.tsv with its audio folder, or DESED's metadata folder, in"
    with refused_exactly(f"--data.root: {expected} {tmp_path}, found neither"):
        read_desed(DESEDData(root=str(tmp_path)))


KINDS = {"ssss": {}, "swwu": {"strong": 1, "weak": 2}, "sssu": {"strong": 3}, "wuuu": {"weak": 1}}


@pytest.mark.parametrize(("kinds", "settings"), [*KINDS.items(), ("ssss", {"strong": 9, "weak": 9})])
@pytest.mark.parametrize("layout", ["published", "plain"])
def test_labels_are_removed_as_configured(read, layout, settings, kinds):
    fourth = {"train/strong.tsv": PLAIN["train/strong.tsv"] + "train_3.flac\t0.5\t1.5\tcat\n"}
    tables = PLAIN | fourth if layout == "plain" else PUBLISHED
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
    with refused(r"expected one of cat \(3\), dog \(3\), got 'cow'"):
        read_clips(DESEDData(root=root, events=("cow",)))
