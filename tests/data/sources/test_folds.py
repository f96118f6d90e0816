import pytest

from qkd_jax.config import ESC50Data, UrbanSound8KData
from qkd_jax.data.clips import Clip
from qkd_jax.data.sources.folds import read_esc50, read_urbansound8k
from qkd_jax.errors import InputError

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
SOURCES = {
    "meta/esc50.csv": (read_esc50, ESC50Data, ESC50),
    "metadata/UrbanSound8K.csv": (read_urbansound8k, UrbanSound8KData, URBANSOUND8K),
}


def read(table, text, root, encoding="utf-8"):
    (root / table).parent.mkdir()
    (root / table).write_text(text, encoding=encoding)
    source, settings, _ = SOURCES[table]
    return source(settings(root=str(root)))


def described(clips, root):
    """Name, label, group and split of each clip, which has nothing else but its root."""
    for clip in clips:
        assert clip == Clip(name=clip.name, root=root, labels=clip.labels, group=clip.group, split=clip.split)
    return [(clip.name, *clip.labels, clip.group, clip.split) for clip in clips]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_esc50_is_read_as_published(tmp_path, encoding):
    assert described(read("meta/esc50.csv", ESC50, tmp_path, encoding), tmp_path) == [
        ("audio/1-100032-A-0.wav", "dog", "100032", "train"),
        ("audio/2-100210-A-36.wav", "vacuum_cleaner", "100210", "train"),
        ("audio/3-100210-B-36.wav", "vacuum_cleaner", "100210", "train"),
        ("audio/4-137-A-32.wav", "keyboard_typing", "137", "valid"),
        ("audio/5-9032-A-0.wav", "dog", "9032", "test"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_urbansound8k_is_read_as_published(tmp_path, encoding):
    clips = read("metadata/UrbanSound8K.csv", URBANSOUND8K, tmp_path, encoding)
    assert described(clips, tmp_path) == [
        ("audio/fold1/100032-3-0-0.wav", "dog_bark", "100032", "train"),
        ("audio/fold8/100263-2-0-117.wav", "children_playing", "100263", "train"),
        ("audio/fold9/100648-1-0-0.wav", "car_horn", "100648", "valid"),
        ("audio/fold10/100648-1-1-0.wav", "car_horn", "100648", "test"),
    ]


@pytest.mark.parametrize(("table", "folds"), [("meta/esc50.csv", 5), ("metadata/UrbanSound8K.csv", 10)])
def test_all_but_the_last_two_folds_are_for_training(tmp_path, table, folds):
    header = "filename,slice_file_name,fold,category,class,src_file,fsID\n"
    rows = "".join(f"{fold}.wav,{fold}.wav,{fold},x,x,{fold},{fold}\n" for fold in range(1, folds + 1))
    splits = [clip.split for clip in read(table, header + rows, tmp_path)]
    assert splits == ["train"] * (folds - 2) + ["valid", "test"]


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("meta/esc50.csv", "a.wav,6,0,dog,True,1,A", "row 7: fold: expected 1 to 5, got '6'"),
        ("meta/esc50.csv", "a.wav,one,0,dog,True,1,A", "row 7: fold: expected 1 to 5, got 'one'"),
        ("meta/esc50.csv", "a.wav,1,0", "row 7: expected 7 fields, got 3"),
        (
            "meta/esc50.csv",
            "../../a.wav,1,0,dog,True,1,A",
            "row 7: filename: expected a path within --data.root, got 'audio/../../a.wav'",
        ),
        (
            "metadata/UrbanSound8K.csv",
            "a.wav,1,0,4,1,0,8,siren",
            "row 6: fold: expected 1 to 10, got '0'",
        ),
        ("metadata/UrbanSound8K.csv", "a.wav,1,0,4,1,1,8,siren,x", "row 6: expected 8 fields, got 9"),
        (
            "metadata/UrbanSound8K.csv",
            "../../../a.wav,1,0,4,1,1,8,siren",
            "row 6: slice_file_name: expected a path within --data.root, got 'audio/fold1/../../../a.wav'",
        ),
    ],
)
def test_a_wrong_row_is_named(tmp_path, table, row, message):
    with pytest.raises(InputError) as error:
        read(table, SOURCES[table][2] + row + "\n", tmp_path)
    assert str(error.value) == f"{tmp_path / table}: {message}"


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("meta/esc50.csv", "filename, category, src_file, fold"),
        ("metadata/UrbanSound8K.csv", "slice_file_name, class, fsID, fold"),
    ],
)
@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("fold,x", "fold, x"),
        ("fold;x", "fold;x; columns seem to be separated by semicolons, expected commas"),
    ],
)
def test_a_missing_column_is_named(tmp_path, table, columns, header, found):
    with pytest.raises(InputError) as error:
        read(table, f"{header}\n1,2\n", tmp_path)
    assert str(error.value) == f"{tmp_path / table}: expected columns {columns}, found {found}"


@pytest.mark.parametrize("table", SOURCES)
def test_a_missing_root_or_table_and_an_empty_or_latin_1_table_are_named(tmp_path, table):
    source, settings, text = SOURCES[table]
    with pytest.raises(
        InputError, match=rf"^--data\.root: expected the folder that contains {table}, got none$"
    ):
        source(settings())
    with pytest.raises(InputError, match=rf"^--data\.root: expected a table at .*/{table}, found none$"):
        source(settings(root=str(tmp_path)))
    with pytest.raises(InputError, match=rf"{table}: expected at least one row, found none"):
        read(table, text.splitlines()[0] + "\n", tmp_path)
    (tmp_path / table).write_text(text.replace("a", "é"), encoding="latin-1")
    with pytest.raises(InputError, match=rf"{table}: expected a table in UTF-8"):
        source(settings(root=str(tmp_path)))
