import pytest

from qkd_jax.config import DataConfig, InputError
from qkd_jax.data.clips import Clip
from qkd_jax.data.esc50 import read_esc50

HEADER = "filename,fold,target,category,esc10,src_file,take\n"
ROWS = """\
1-100032-A-0.wav,1,0,dog,True,100032,A
2-100210-A-36.wav,2,36,vacuum_cleaner,False,100210,A
3-100210-B-36.wav,3,36,vacuum_cleaner,False,100210,B
4-137-A-32.wav,4,32,keyboard_typing,False,137,A
5-9032-A-0.wav,5,0,dog,True,9032,A
"""


@pytest.fixture
def read(tmp_path):
    """Reads ESC-50 with the given table."""

    def read(text, encoding="utf-8"):
        (tmp_path / "meta").mkdir()
        (tmp_path / "meta/esc50.csv").write_text(text, encoding=encoding)
        return read_esc50(DataConfig(root=str(tmp_path)))

    return read


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_the_published_layout(read, tmp_path, encoding):
    def clip(file, label, group, split):
        name = f"audio/{file}"
        return Clip(name=name, path=tmp_path / name, labels=frozenset({label}), group=group, split=split)

    assert read(HEADER + ROWS, encoding) == [
        clip("1-100032-A-0.wav", "dog", "100032", "train"),
        clip("2-100210-A-36.wav", "vacuum_cleaner", "100210", "train"),
        clip("3-100210-B-36.wav", "vacuum_cleaner", "100210", "train"),
        clip("4-137-A-32.wav", "keyboard_typing", "137", "valid"),
        clip("5-9032-A-0.wav", "dog", "9032", "test"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "filename,fold,category\na.wav,1,dog\n",
            "expected columns filename, fold, category, src_file; found filename, fold, category",
        ),
        (HEADER, "expected rows, found none"),
        (HEADER + ROWS + "a.wav,6,0,dog,True,1,A\n", "row 7: fold: expected 1 to 5, got '6'"),
        (HEADER + "a.wav,one,0,dog,True,1,A\n", "row 2: fold: expected 1 to 5, got 'one'"),
        (HEADER + ROWS + "a.wav,1,0\n", "row 7: expected 7 fields, got 3"),
        (
            HEADER + "../../a.wav,1,0,dog,True,1,A\n",
            "row 2: filename: expected a path within data.root, got 'audio/../../a.wav'",
        ),
    ],
)
def test_errors_say_where_and_what_was_found(read, tmp_path, text, message):
    with pytest.raises(InputError) as error:
        read(text)
    assert str(error.value) == f"{tmp_path / 'meta/esc50.csv'}: {message}"


def test_another_encoding_is_named(read):
    with pytest.raises(InputError, match=r"meta/esc50\.csv: expected a table in UTF-8"):
        read(HEADER + "é.wav,1,0,dog,True,1,A\n", encoding="latin-1")


def test_no_root_and_no_table(tmp_path):
    with pytest.raises(
        InputError, match=r"^data\.root: expected the folder that holds meta/esc50\.csv, got none$"
    ):
        read_esc50(DataConfig())
    with pytest.raises(InputError, match=r"^data\.root: expected a table at .*/meta/esc50\.csv, found none$"):
        read_esc50(DataConfig(root=str(tmp_path)))
