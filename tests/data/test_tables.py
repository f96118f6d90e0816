import re

import pytest

from qkd_jax.config import ManifestData
from qkd_jax.data.tables import data_root, read_table
from qkd_jax.errors import InputError
from tests.faults import refused, refused_exactly, refused_in_one_line


@pytest.fixture
def read(tmp_path):
    """Reads a table of the given bytes, or of text in UTF-8."""

    def read(content, columns=("filename", "fold"), **options):
        path = tmp_path / "list.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_table(path, columns, setting="--data.root", **options))

    return read


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_any_line_end_and_character_is_read_with_or_without_a_byte_order_mark(read, end, encoding):
    text = end.join(["filename,fold", "bébé.wav,犬", ""])
    assert read(text.encode(encoding)) == [(2, {"filename": "bébé.wav", "fold": "犬"})]


def test_rows_come_with_the_numbers_of_their_lines_and_all_columns(read, tmp_path):
    assert read('filename,fold\n"a,b.wav",1\n\nc.wav,\n') == [
        (2, {"filename": "a,b.wav", "fold": "1"}),
        (4, {"filename": "c.wav", "fold": ""}),
    ]
    assert read("x,fold,filename\n1,2,a\n") == [(2, {"x": "1", "fold": "2", "filename": "a"})]
    rows = read("filename\tfold\na, b.wav\t1\n", delimiter="\t")
    assert rows == [(2, {"filename": "a, b.wav", "fold": "1"})]
    # They are read one by one, so a fault in the second leaves the first.
    (tmp_path / "list.csv").write_text("fold\n1\n2,too many\n")
    rows = read_table(tmp_path / "list.csv", ("fold",), setting="--data.root")
    assert next(rows) == (2, {"fold": "1"})


def test_without_a_header_columns_name_the_fields_and_comments_are_skipped(read):
    text = '# made by "hand\n# filename, fold\na.wav, "1,2"\n#b.wav, 1\n-c.wav, 2\n'
    assert read(text, header=False) == [
        (3, {"filename": "a.wav", "fold": "1,2"}),
        (5, {"filename": "-c.wav", "fold": "2"}),
    ]
    assert read("filename,fold\n#1.wav,2\n") == [(2, {"filename": "#1.wav", "fold": "2"})]
    with refused(r"list\.csv: expected at least one row, found none"):
        read("# filename, fold\n", header=False)


def test_rows_may_lack_their_last_fields_if_that_is_allowed(read):
    columns = ("filename", "onset", "offset")
    text = "filename\tonset\toffset\na\t\t\nb\nc\t1\nd\t1\t2\n"
    rows = [row for _, row in read(text, columns, delimiter="\t", short=True)]
    expected = [("a", "", ""), ("b", "", ""), ("c", "1", ""), ("d", "1", "2")]
    assert rows == [dict(zip(columns, fields)) for fields in expected]
    with refused("row 2: expected 3 fields, got 4"):
        read("filename\tonset\toffset\na\t1\t2\t3\n", columns, delimiter="\t", short=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("bébé,fold\n".encode("latin-1"), "expected a table in UTF-8: 'utf-8' codec"),
        ("bébé,fold\n".encode("utf-16"), "expected a table in UTF-8: 'utf-8' codec"),
        ("", "expected columns filename, fold, found none"),
        ("a,b\n1,2\n", "expected columns filename, fold, found a, b"),
        ("filename\nx\n", "expected columns filename, fold, found filename"),
        ("filename,fold,fold\na,1,2\n", "expected each column once, found filename, fold, fold"),
        ("filename,fold\n", "expected at least one row, found none"),
        ("filename,fold\n\na,1\nb\n", "row 4: expected 2 fields, got 1"),
        ("filename,fold\na,1,2\n", "row 2: expected 2 fields, got 3"),
        ('filename,fold\n"a,1\nb,2\n', "row 3: expected a valid CSV row: unexpected end of data"),
        ("filename,fold\n" + "a" * 200_000 + ",1\n", "row 2: expected a valid CSV row: field larger"),
    ],
)
def test_errors_are_one_line_and_say_where(read, tmp_path, content, message):
    with refused_in_one_line("^" + re.escape(f"{tmp_path / 'list.csv'}: {message}")):
        read(content)


SEPARATED, ENDS_IN = "columns seem to be separated by", "a name ending in"


@pytest.mark.parametrize(
    ("header", "delimiter", "named_by", "advice"),
    [
        ("filename;fold", ",", "", f"{SEPARATED} semicolons, expected commas"),
        ("filename;fold", ",", "--list", f"{SEPARATED} semicolons, expected commas"),
        ("name;class;note, free", ",", "", f"{SEPARATED} semicolons, expected commas"),
        ("filename\tfold", ",", "", f"{SEPARATED} tabs, expected commas"),
        ("filename\tfold", ",", "--list", f"{SEPARATED} tabs, expected commas or {ENDS_IN} .tsv (--list)"),
        ("filename,fold", "\t", "", f"{SEPARATED} commas, expected tabs"),
        ("filename,fold", "\t", "--list", f"{SEPARATED} commas, expected tabs or {ENDS_IN} .csv (--list)"),
        # Nothing points to another separator.
        ("file,class", ",", "--list", "--columns"),
        ("file;name,fold", ",", "--list", "--columns"),
        ("filename fold", ",", "--list", "--columns"),
        ("", ",", "--list", "--columns"),
    ],
)
def test_a_missing_column_comes_with_advice_on_the_separator_or_the_columns(
    read, header, delimiter, named_by, advice
):
    text = f"{header}\na.wav,1\n" if header else ""
    with pytest.raises(InputError) as error:
        read(text, delimiter=delimiter, hint="; --columns", named_by=named_by)
    assert str(error.value).split("; ")[1:] == [advice]


def test_a_missing_table_or_root_is_named(tmp_path):
    for path in (tmp_path / "list.csv", tmp_path):
        with refused_exactly(f"--data.root: expected a table at {path}, found none"):
            list(read_table(path, ("fold",), setting="--data.root"))
    assert data_root(ManifestData(root=str(tmp_path)), "list.csv") == tmp_path
    with refused_exactly("--data.root: expected the folder that contains list.csv, got none"):
        data_root(ManifestData(), "list.csv")
