import pytest

from qkd_jax.config import DataConfig, InputError
from qkd_jax.data.clips import Clip
from qkd_jax.data.urbansound8k import read_urbansound8k

HEADER = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
ROWS = """\
100032-3-0-0.wav,100032,0.0,0.317551,1,1,3,dog_bark
100263-2-0-117.wav,100263,58.5,62.5,1,8,2,children_playing
100648-1-0-0.wav,100648,4.823402,5.471927,2,9,1,car_horn
100648-1-1-0.wav,100648,8.998279,10.052132,2,10,1,car_horn
"""


@pytest.fixture
def read(tmp_path):
    """Reads UrbanSound8K with the given table."""

    def read(text, encoding="utf-8"):
        (tmp_path / "metadata").mkdir()
        (tmp_path / "metadata/UrbanSound8K.csv").write_text(text, encoding=encoding)
        return read_urbansound8k(DataConfig(root=str(tmp_path)))

    return read


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_the_published_layout(read, tmp_path, encoding):
    def clip(name, label, group, split):
        return Clip(name=name, path=tmp_path / name, labels=frozenset({label}), group=group, split=split)

    assert read(HEADER + ROWS, encoding) == [
        clip("audio/fold1/100032-3-0-0.wav", "dog_bark", "100032", "train"),
        clip("audio/fold8/100263-2-0-117.wav", "children_playing", "100263", "train"),
        clip("audio/fold9/100648-1-0-0.wav", "car_horn", "100648", "valid"),
        clip("audio/fold10/100648-1-1-0.wav", "car_horn", "100648", "test"),
    ]


def test_eight_folds_are_for_training(read):
    rows = "".join(f"{fold}.wav,{fold},0,4,1,{fold},3,dog_bark\n" for fold in range(1, 11))
    assert [clip.split for clip in read(HEADER + rows)] == ["train"] * 8 + ["valid", "test"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "slice_file_name,fold,class\na.wav,1,siren\n",
            "expected columns slice_file_name, fsID, fold, class; found slice_file_name, fold, class",
        ),
        (HEADER, "expected rows, found none"),
        (HEADER + ROWS + "a.wav,1,0,4,1,0,8,siren\n", "row 6: fold: expected 1 to 10, got '0'"),
        (HEADER + "a.wav,1,0,4,1,fold1,8,siren\n", "row 2: fold: expected 1 to 10, got 'fold1'"),
        (HEADER + "a.wav,1,0,4,1,1,8,siren,x\n", "row 2: expected 8 fields, got 9"),
        (
            HEADER + "../../../a.wav,1,0,4,1,1,8,siren\n",
            "row 2: slice_file_name: expected a path within data.root, got 'audio/fold1/../../../a.wav'",
        ),
    ],
)
def test_errors_say_where_and_what_was_found(read, tmp_path, text, message):
    with pytest.raises(InputError) as error:
        read(text)
    assert str(error.value) == f"{tmp_path / 'metadata/UrbanSound8K.csv'}: {message}"


def test_another_encoding_is_named(read):
    with pytest.raises(InputError, match=r"metadata/UrbanSound8K\.csv: expected a table in UTF-8"):
        read(HEADER + "é.wav,1,0,4,1,1,8,siren\n", encoding="latin-1")


def test_no_root_and_no_table(tmp_path):
    with pytest.raises(
        InputError, match=r"^data\.root: expected the folder that holds metadata/UrbanSound8K\.csv, got none$"
    ):
        read_urbansound8k(DataConfig())
    with pytest.raises(
        InputError, match=r"^data\.root: expected a table at .*/metadata/UrbanSound8K\.csv, found none$"
    ):
        read_urbansound8k(DataConfig(root=str(tmp_path)))
