import csv
import io
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qkd_jax.config import ManifestData
from qkd_jax.data.tables import data_root, inside, plain, read_table, split_of
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
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_any_line_end_and_character_is_read_with_or_without_a_byte_order_mark(read, end, encoding):
    text = end.join(["filename,fold", "bébé.wav,犬", ""])
    assert read(text.encode(encoding)) == [(2, {"filename": "bébé.wav", "fold": "犬"})]


def test_rows_come_with_the_numbers_of_their_lines_and_all_columns(read, tmp_path):
    assert read('filename,fold\n"a,b.wav",1\n\nc.wav,\n') == [
        (2, {"filename": "a,b.wav", "fold": "1"}),
        (4, {"filename": "c.wav", "fold": ""}),
    ]
    text = "x,fold,filename\n1,2,a\n"
    assert read(text) == [(2, {"x": "1", "fold": "2", "filename": "a"})]
    assert read(text, optional=("y", "X")) == [(2, {"X": "1", "fold": "2", "filename": "a"})]
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
    rows = [row for _, row in read(text, columns, short=True)]
    expected = [("a", "", ""), ("b", "", ""), ("c", "1", ""), ("d", "1", "2")]
    assert rows == [dict(zip(columns, fields)) for fields in expected]
    with refused("row 2: expected 3 fields, got 4"):
        read("filename\tonset\toffset\na\t1\t2\t3\n", columns, short=True)


ENCODING = "expected UTF-8, or UTF-16 with a byte order mark, found byte"
SAVE = 'save the table as UTF-8 (in Excel: "CSV UTF-8")'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("bébé,fold\n".encode("latin-1"), f"row 1: {ENCODING} 0xe9; {SAVE}"),
        ("filename,fold\r\na,1\r\nbébé,2\r\n".encode("cp1252"), f"row 3: {ENCODING} 0xe9; {SAVE}"),
        ("filename,fold\rbébé,1\r".encode("utf-16")[:-1], f"row 2: {ENCODING} 0x0d; {SAVE}"),
        ("filename,fold\na,1\n".encode("utf-16-le"), "expected columns filename, fold, found f?i?"),
        ("", "expected columns filename, fold, found none"),
        ("a,b\n1,2\n", "expected columns filename, fold, found a, b"),
        ("filename\nx\n", "expected columns filename, fold, found filename"),
        ("filename,fold,fold\na,1,2\n", "expected one column fold, found fold, fold"),
        ("filename,fold\n", "expected at least one row, found none"),
        ("filename,fold,Filename\na,1,2\n", "expected one column filename, found filename, Filename"),
        ("filename;fold\na;1;2\n", "row 2: expected 2 fields, got 3"),
        ("filename,fold\n\na,1\nb\n", "row 4: expected 2 fields, got 1"),
        ("filename,fold\na,1,2\n", "row 2: expected 2 fields, got 3"),
        ('filename,fold\n"a,1\nb,2\n', "row 3: expected a valid CSV row: unexpected end of data"),
        ("filename,fold\n" + "a" * 200_000 + ",1\n", "row 2: expected a valid CSV row: field larger"),
    ],
)
def test_errors_are_one_line_and_say_where(read, tmp_path, content, message):
    with refused_in_one_line("^" + re.escape(f"{tmp_path / 'list.csv'}: {message}")):
        read(content)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separator_is_the_one_that_gives_the_columns(read, separator):
    # Labels in a field, or in a column's name, may hold more of another separator.
    others = "".join({",", ";", "\t"} - {separator})
    text = f'filename{separator}"note{others * 9}"{separator}fold\na.wav{separator}x{separator}"1{others}2"\n'
    ((line, row),) = read(text)
    assert (line, row["filename"], row["fold"]) == (2, "a.wav", f"1{others}2")


def test_labels_may_be_separated_by_what_separates_tables(read):
    assert read("filename,fold\na.wav,dog;cat;bird\n") == [(2, {"filename": "a.wav", "fold": "dog;cat;bird"})]
    assert read('filename;fold\na.wav;"dog;cat"\n') == [(2, {"filename": "a.wav", "fold": "dog;cat"})]
    assert read('"filename";"fold"\n"a,b.wav";"dog"\n') == [(2, {"filename": "a,b.wav", "fold": "dog"})]


def test_a_delimiter_decides_where_the_header_does_not(read):
    assert read("filename\na, b.wav\n", ["filename"], delimiter="\t") == [(2, {"filename": "a, b.wav"})]
    with refused("row 2: expected 1 fields, got 2"):
        read("filename\na, b.wav\n", ["filename"])
    assert read("filename,fold\na,1\n", delimiter="\t") == [(2, {"filename": "a", "fold": "1"})]
    assert read("a, b\t1\n", delimiter="\t", header=False) == [(1, {"filename": "a, b", "fold": "1"})]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("first", ["sep={}", "SEP={}", '"sep={}"'])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_excels_line_decides_the_separator(read, encoding, first, separator):
    lines = [first.format(separator), f"filename{separator}fold", f"é.wav{separator}1", ""]
    assert read("\r\n".join(lines).encode(encoding)) == [(3, {"filename": "é.wav", "fold": "1"})]


def test_a_wrong_separator_in_excels_line_is_not_overruled(read):
    with refused("expected columns filename, fold, found filename,fold$"):
        read("sep=;\nfilename,fold\na,1\n")


def test_blanks_around_fields_and_rows_of_blanks_are_ignored(read):
    rows = [
        " filename ; fold;",
        "a.wav ;\u00a01 ;",
        ";;",
        "",
        "  ",
        ' ; "";\t',
        "b.wav;2;;;",
        "c.wav;3",
        " ; ",
    ]
    with refused("row 8: expected 3 fields, got 2"):
        read("\n".join(rows))
    rows[7] += ";"
    read_rows = [(line, row["filename"], row["fold"]) for line, row in read("\n".join(rows))]
    assert read_rows == [(2, "a.wav", "1"), (7, "b.wav", "2"), (8, "c.wav", "3")]


def test_columns_are_found_in_any_case_and_unicode_form(read):
    (row,) = read("FileName,FOLD ,Cafe\u0301\na.wav,1,2\n", optional=["caf\u00e9", "split"])
    assert row == (2, {"filename": "a.wav", "fold": "1", "caf\u00e9": "2"})


WORDS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)


@given(
    st.lists(st.tuples(WORDS.filter(plain), WORDS), min_size=1, max_size=4),
    st.sampled_from(",;\t"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_what_csv_writes_is_read_back(rows, separator, encoding, end, quoting, sep_line):
    text = io.StringIO(newline="")
    # For these, csv quotes only the characters of its own line end.
    assume(quoting != csv.QUOTE_MINIMAL or not re.search("[\r\n]", "".join(map("".join, rows))))
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([("filename", "fold"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "list.csv")
        path.write_bytes((f"sep={separator}{end}" * sep_line + text.getvalue()).encode(encoding))
        read = [tuple(row.values()) for _, row in read_table(path, ("filename", "fold"), setting="")]
    assert read == [tuple(map(plain, row)) for row in rows]


def test_a_missing_column_comes_with_advice(read):
    for header, found in (("file,class", "file, class"), ("file;class", "file, class"), ("", "none")):
        with refused_in_one_line(f"expected columns filename, fold, found {found}; --columns$"):
            read(f"{header}\na.wav,1\n" if header else "", hint="; --columns")


@pytest.mark.parametrize(
    "path",
    [
        "..\\..\\x",
        "a\\..\\..\\x",
        "a\\b/../../x",
        "C:\\x.wav",
        "c:/x.wav",
        "C:",
        "\\\\server\\x",
        "//server/x",
    ],
)
def test_no_path_of_windows_leads_outside(path):
    with refused("^row 2: expected a path within --data.root, got"):
        inside(path, "row 2")


def test_backslashes_and_colons_stay_in_names():
    for name in ("a\\b.wav", "1:30.wav", "a:b.wav"):
        assert inside(name, "") == name


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("train", ["train", "Train", " TRAIN ", "training"]),
        ("valid", ["valid", "val", "Validation", "dev", "DEV"]),
        ("test", ["test", "TEST", "testing", "eval", "evaluation"]),
    ],
)
def test_splits_have_other_usual_names(split, words):
    assert [split_of(word, "") for word in words] == [split] * len(words)


@pytest.mark.parametrize("word", ["", "tests", "fold1", "train,test"])
def test_other_splits_are_refused_with_the_list(word):
    known = "train (or training), valid (or validation, val, dev), test (or testing, eval, evaluation)"
    with refused_exactly(f"t.csv: row 2: split: expected {known}, got {word!r}"):
        split_of(word, "t.csv: row 2: split")


def test_a_missing_table_or_root_is_named(tmp_path):
    for path in (tmp_path / "list.csv", tmp_path):
        with refused_exactly(f"--data.root: expected a table at {path}, found none"):
            list(read_table(path, ("fold",), setting="--data.root"))
    assert data_root(ManifestData(root=str(tmp_path)), "list.csv") == tmp_path
    with refused_exactly("--data.root: expected the folder that contains list.csv, got none"):
        data_root(ManifestData(), "list.csv")
