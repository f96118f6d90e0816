import pytest

from qkd_jax.config import ManifestData
from qkd_jax.data.tables import data_root, read_table
from qkd_jax.errors import InputError


@pytest.fixture
def read(tmp_path):
    """Reads a table of the given bytes, or of text in UTF-8."""

    def read(content, columns=("filename", "fold"), **options):
        path = tmp_path / "list.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_table(path, columns, setting="--data.root", **options))

    return read


def test_rows_come_with_the_numbers_of_their_lines(read):
    assert read('filename,fold\n"a,b.wav",1\n\nc.wav,\n') == [
        (2, {"filename": "a,b.wav", "fold": "1"}),
        (4, {"filename": "c.wav", "fold": ""}),
    ]


def test_rows_are_read_one_by_one(tmp_path):
    (tmp_path / "list.csv").write_text("fold\n1\n2,too many\n")
    rows = read_table(tmp_path / "list.csv", ("fold",), setting="--data.root")
    assert next(rows) == (2, {"fold": "1"})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_any_line_end_and_character_is_read_with_or_without_a_byte_order_mark(read, end, encoding):
    text = end.join(["filename,fold", "bébé.wav,犬", ""])
    assert read(text.encode(encoding)) == [(2, {"filename": "bébé.wav", "fold": "犬"})]


def test_other_columns_are_read_too(read):
    assert read("x,fold,filename\n1,2,a\n") == [(2, {"x": "1", "fold": "2", "filename": "a"})]


def test_a_table_may_be_separated_by_tabs(read):
    rows = read("filename\tfold\na, b.wav\t1\n", delimiter="\t")
    assert rows == [(2, {"filename": "a, b.wav", "fold": "1"})]


def test_without_a_header_columns_name_the_fields_and_comments_are_skipped(read):
    text = '# made by "hand\n# filename, fold\na.wav, "1,2"\n#b.wav, 1\n-c.wav, 2\n'
    assert read(text, header=False) == [
        (3, {"filename": "a.wav", "fold": "1,2"}),
        (5, {"filename": "-c.wav", "fold": "2"}),
    ]
    assert read("filename,fold\n#1.wav,2\n") == [(2, {"filename": "#1.wav", "fold": "2"})]


def test_rows_may_lack_their_last_fields_if_that_is_allowed(read):
    columns = ("filename", "onset", "offset")
    text = "filename\tonset\toffset\na\t\t\nb\nc\t1\nd\t1\t2\n"
    rows = [row for _, row in read(text, columns, delimiter="\t", short=True)]
    expected = [("a", "", ""), ("b", "", ""), ("c", "1", ""), ("d", "1", "2")]
    assert rows == [dict(zip(columns, fields)) for fields in expected]
    with pytest.raises(InputError, match="row 2: expected 3 fields, got 4"):
        read("filename\tonset\toffset\na\t1\t2\t3\n", columns, delimiter="\t", short=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
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
    with pytest.raises(InputError) as error:
        read(content)
    assert str(error.value).startswith(f"{tmp_path / 'list.csv'}: {message}")
    assert "\n" not in str(error.value)


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


def test_a_table_of_comments_has_no_rows(read):
    with pytest.raises(InputError, match=r"list\.csv: expected at least one row, found none"):
        read("# filename, fold\n", header=False)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_named(read, encoding):
    with pytest.raises(InputError, match=r"list\.csv: expected a table in UTF-8: 'utf-8' codec"):
        read("filename,fold\nbébé.wav,1\n".encode(encoding))


def test_a_missing_table_is_named(tmp_path):
    for path in (tmp_path / "list.csv", tmp_path):
        with pytest.raises(InputError) as error:
            list(read_table(path, ("fold",), setting="--data.root"))
        assert str(error.value) == f"--data.root: expected a table at {path}, found none"


def test_a_missing_root_is_named(tmp_path):
    assert data_root(ManifestData(root=str(tmp_path)), "list.csv") == tmp_path
    with pytest.raises(InputError) as error:
        data_root(ManifestData(), "list.csv")
    assert str(error.value) == "--data.root: expected the folder that contains list.csv, got none"
