import os
from collections import Counter
from pathlib import Path

import pytest

from qkd_jax.config import ESC50Data, ManifestData, UrbanSound8KData
from qkd_jax.data.clip_list import read_clips
from qkd_jax.data.clips import with_splits
from qkd_jax.data.sources.folds import read_esc50, read_urbansound8k
from qkd_jax.data.sources.manifest import read_manifest
from tests.faults import refused, refused_exactly
from tests.recordings import clip

ESC50 = """\
filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
2-100210-A-36.wav,2,36,vacuum_cleaner,False,100210,A
3-100210-B-36.wav,3,36,vacuum_cleaner,False,100210,B
4-137-A-32.wav,4,32,keyboard_typing,False,137,A
5-9032-A-0.wav,5,0,dog,True,9032,A
"""
URBANSOUND8K = """\
slice_file_name,fsID,start,end,salience,fold,classID,class
100032-3-0-0.wav,100032,0.0,0.317551,1,1,3,dog_bark
100263-2-0-117.wav,100263,58.5,62.5,1,8,2,children_playing
100648-1-0-0.wav,100648,4.823402,5.471927,2,9,1,car_horn
100648-1-1-0.wav,100648,8.998279,10.052132,2,10,1,car_horn
"""
REAL = Path(os.environ.get("QKD_SHARED", Path(__file__).parents[4] / "shared")) / "data" / "esc50"
ESC, URBAN = "meta/esc50.csv", "metadata/UrbanSound8K.csv"
SOURCES = {ESC: (read_esc50, ESC50Data, ESC50), URBAN: (read_urbansound8k, UrbanSound8KData, URBANSOUND8K)}
WITHIN = "expected a path within --data.root, got"


def read(table, text, root):
    (root / table).parent.mkdir()
    (root / table).write_text(text)
    source, settings, _ = SOURCES[table]
    return source(settings(root=str(root)))


PUBLISHED = {
    ESC: [
        ("audio/1-100032-A-0.wav", "dog", "100032", "train"),
        ("audio/2-100210-A-36.wav", "vacuum_cleaner", "100210", "train"),
        ("audio/3-100210-B-36.wav", "vacuum_cleaner", "100210", "train"),
        ("audio/4-137-A-32.wav", "keyboard_typing", "137", "valid"),
        ("audio/5-9032-A-0.wav", "dog", "9032", "test"),
    ],
    URBAN: [
        ("audio/fold1/100032-3-0-0.wav", "dog_bark", "100032", "train"),
        ("audio/fold8/100263-2-0-117.wav", "children_playing", "100263", "train"),
        ("audio/fold9/100648-1-0-0.wav", "car_horn", "100648", "valid"),
        ("audio/fold10/100648-1-1-0.wav", "car_horn", "100648", "test"),
    ],
}


@pytest.mark.parametrize("table", SOURCES)
def test_sources_are_read_as_published(tmp_path, table):
    clips = read(table, SOURCES[table][2], tmp_path)
    for each in clips:
        assert each == clip(each.name, each.labels, tmp_path, group=each.group, split=each.split)
    assert [(each.name, *each.labels, each.group, each.split) for each in clips] == PUBLISHED[table]


@pytest.mark.parametrize(("table", "folds"), [(ESC, 5), (URBAN, 10)])
def test_all_but_the_last_two_folds_are_for_training(tmp_path, table, folds):
    header = "filename,slice_file_name,fold,category,class,src_file,fsID\n"
    rows = "".join(f"{fold}.wav,{fold}.wav,{fold},x,x,{fold},{fold}\n" for fold in range(1, folds + 1))
    splits = [clip.split for clip in read(table, header + rows, tmp_path)]
    assert splits == ["train"] * (folds - 2) + ["valid", "test"]


TABLE = "filename,labels,fold,group,split\n"
ROWS = "a.wav,x,10,a,train\nb.wav,,2,b,test\nc.wav,x,3,c,test\nd.wav,,10,d,valid\n"


@pytest.mark.parametrize(
    ("folds", "expected"),
    [
        ((), ["train", "test", "test", "valid"]),
        ((10,), ["test", "train", "valid", "test"]),
        ((2,), ["valid", "test", "train", "valid"]),
        ((3, 2), ["train", "valid", "test", "train"]),
    ],
)
def test_a_manifest_may_be_divided_by_folds(tmp_path, folds, expected):
    """The fold before the first is the last."""
    (tmp_path / "metadata.csv").write_text(TABLE + ROWS)
    clips = read_manifest(ManifestData(root=str(tmp_path), folds=folds))
    assert [each.split for each in clips] == expected


@pytest.mark.parametrize("fold", [1, 2, 5])
def test_each_published_fold_may_be_the_test(tmp_path, fold):
    (tmp_path / "meta").mkdir()
    (tmp_path / ESC).write_text(ESC50)
    splits = [each.split for each in read_esc50(ESC50Data(root=str(tmp_path), folds=(fold,)))]
    before = (fold - 2) % 5
    assert splits[fold - 1] == "test" and splits[before] == "valid" and splits.count("train") == 3


@pytest.mark.parametrize(
    ("table", "folds", "message"),
    [
        (TABLE + ROWS, (4,), r"--data\.folds: expected some of 2, 3, 10, got 4"),
        (TABLE + ROWS, (2, 4), r"--data\.folds: expected some of 2, 3, 10, got 4"),
        (TABLE + "a.wav,x,first,a,\n", (1,), r"row 2: fold: expected the number of a fold, .* got 'first'"),
        (TABLE + "a.wav,x,0,a,\n", (1,), r"row 2: fold: expected the number of a fold, .* got '0'"),
        (
            "filename,labels\na.wav,x\n",
            (1,),
            r"metadata\.csv: .*found filename, labels; .*, --data\.fold-column that of folds$",
        ),
        (TABLE + "a.wav,x,1,a,\nb.wav,,2,b,\n", (1,), r"expected a table of at least 3 folds, found 2"),
    ],
)
def test_faults_of_folds_are_named(tmp_path, table, folds, message):
    (tmp_path / "metadata.csv").write_text(table)
    with refused(message):
        read_manifest(ManifestData(root=str(tmp_path), folds=folds))


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        (ESC, "a.wav,6,0,dog,True,1,A", "row 7: fold: expected 1 to 5, got '6'"),
        (ESC, "a.wav,one,0,dog,True,1,A", "row 7: fold: expected 1 to 5, got 'one'"),
        (ESC, "a.wav,1,0", "row 7: expected 7 fields, got 3"),
        (ESC, "../../a.wav,1,0,dog,True,1,A", f"row 7: filename: {WITHIN} 'audio/../../a.wav'"),
        (URBAN, "a.wav,1,0,4,1,0,8,siren", "row 6: fold: expected 1 to 10, got '0'"),
        (URBAN, "a.wav,1,0,4,1,1,8,siren,x", "row 6: expected 8 fields, got 9"),
        (
            URBAN,
            "../../../a.wav,1,0,4,1,1,8,x",
            f"row 6: slice_file_name: {WITHIN} 'audio/fold1/../../../a.wav'",
        ),
    ],
)
def test_a_wrong_row_is_named(tmp_path, table, row, message):
    with refused_exactly(f"{tmp_path / table}: {message}"):
        read(table, SOURCES[table][2] + row + "\n", tmp_path)


COLUMNS = {ESC: "filename, category, src_file, fold", URBAN: "slice_file_name, class, fsID, fold"}


@pytest.mark.parametrize("table", SOURCES)
def test_a_missing_column_is_named(tmp_path, table):
    with refused_exactly(f"{tmp_path / table}: expected columns {COLUMNS[table]}, found fold, x"):
        read(table, "fold,x\n1,2\n", tmp_path)


@pytest.mark.parametrize("table", SOURCES)
def test_a_missing_root_or_table_and_an_empty_table_are_named(tmp_path, table):
    source, settings, text = SOURCES[table]
    with refused(rf"^--data\.root: expected the folder that contains {table}, got none$"):
        source(settings())
    with refused(rf"^--data\.root: expected a table at .*/{table}, found none$"):
        source(settings(root=str(tmp_path)))
    with refused(rf"{table}: expected at least one row, found none"):
        read(table, text.splitlines()[0] + "\n", tmp_path)


FOLDS_HOLD = "esc50: the published folds hold, though these recordings are in more than one: "


def test_published_folds_hold_for_a_recording_in_two_of_them(tmp_path, capsys):
    rows = "2-1-A-1.wav,2,1,cat,False,1,A\n3-1-B-1.wav,3,1,dog,False,1,B\n"
    rows += "4-7-A-1.wav,4,1,cat,False,7,A\n5-7-B-1.wav,5,1,dog,False,7,B\n5-7-C-1.wav,5,1,dog,False,7,C\n"
    read(ESC, ESC50 + rows, tmp_path)
    clips = with_splits(read_clips(ESC50Data(root=str(tmp_path))), ("dog", "cat"))
    assert [clip.split for clip in clips[5:]] == ["train", "train", "valid", "test", "test"]
    assert [clip.group for clip in clips[5:]] == ["1", "1", "7 valid", "7 test", "7 test"]
    assert capsys.readouterr().out.splitlines()[-1] == FOLDS_HOLD + "3 (1, 100210, 7)"


def test_your_own_splits_still_keep_a_group_in_one(tmp_path):
    text = "filename,labels,split,group\na.wav,dog,train,1\nb.wav,,valid,1\n"
    (tmp_path / "metadata.csv").write_text(text)
    with refused("expected all clips of group '1' in one split"):
        with_splits(read_clips(ManifestData(root=str(tmp_path))), ("dog",))


@pytest.mark.skipif(
    not REAL.is_dir(), reason=f"needs ESC-50 in {REAL}; QKD_SHARED names the folder around data/"
)
def test_the_real_esc50_is_read_as_published(capsys):
    clips = with_splits(read_clips(ESC50Data(root=str(REAL))), ())
    assert Counter(clip.split for clip in clips) == {"train": 1200, "valid": 400, "test": 400}
    assert all(clip.path.is_file() for clip in clips)
    assert capsys.readouterr().out == FOLDS_HOLD + "4 (131943, 134049, 209698, 234879)\n"
