"""Tables of labels as people have them: read row by row, with one line per error."""

import codecs
import csv
import itertools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from qkd_jax.config import AnyData
from qkd_jax.errors import InputError

_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?\s*', re.IGNORECASE)
"""The first line by which Excel knows the separator."""
_DRIVE = re.compile(r"[A-Za-z]:(/|$)")
_SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_NAMES = {word: split for split, words in _SPLITS.items() for word in words}
"""The split that each word stands for."""


def data_root(config: AnyData, holds: str) -> Path:
    """The folder `config.root`; raises InputError, naming the expected content, if there is none."""
    if config.root is None:
        raise InputError(f"--data.root: expected the folder that contains {holds}, got none")
    return Path(config.root)


def inside(name: str, where: str) -> str:
    """`name`, a path within the root, normalised; raises InputError if it leads outside.

    It must also stay inside where backslashes separate folders, as in Windows: `data.clip_list` may take
    them so.

    >>> inside("audio/../a.wav", "row 1")
    'a.wav'
    """
    for path in (name, name.replace("\\", "/")):
        normal = os.path.normpath(path) if name else ""
        outside = os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir or _DRIVE.match(normal)
        if not normal or "\0" in normal or outside:
            raise InputError(f"{where}: expected a path within --data.root, got {name!r}")
    return os.path.normpath(name)


def plain(text: str) -> str:
    """`text` without blanks at its ends, composed (Unicode's NFC), so that equal words are equal strings.

    >>> plain(" cafe\\u0301 ")
    'café'
    """
    text = text.strip()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def split_of(text: str, where: str) -> str:
    """The split that `text` names, in any case: train, valid or test, or another usual word for one of them.

    Raises InputError for other words; `where` names the file, the row and the column.

    >>> split_of("Validation", "row 2: split")
    'valid'
    """
    if split := SPLIT_NAMES.get(text.strip().lower()):
        return split
    known = ", ".join(f"{split} (or {', '.join(words[1:])})" for split, words in _SPLITS.items())
    raise InputError(f"{where}: expected {known}, got {text!r}")


def read_table(
    path: Path,
    columns: Sequence[str],
    *,
    setting: str,
    optional: Sequence[str] = (),
    delimiter: str = ",",
    header: bool = True,
    quotes: bool = True,
    short: bool = False,
    hint: str = "",
) -> Iterator[tuple[int, dict[str, str]]]:
    """Read the table at `path` row by row: the number of its line, and its fields by column.

    The table is UTF-8, or UTF-16 with a byte order mark.  Commas, semicolons or tabs separate its fields,
    whichever gives the `columns`, and `delimiter` if several do; a first line `sep=;` decides it.  Fields are
    `plain`.  Rows without any text are ignored, and so are empty fields at the end of a row.  It must have
    `columns` and may have others; these and `optional` ones are found in any case.  Without a `header` there
    are exactly `columns`, between `delimiter`s, and lines that begin with # are comments.  Without `quotes`
    these are characters like others.  With `short`, rows may lack their last fields, which are then empty.

    Raises InputError, as it reads, for a missing file (naming the flag `setting`), another encoding, a row
    with too few or too many fields, an open quote, a table without rows, and a column that is missing (with
    `hint`) or there twice.
    """
    if not os.path.isfile(path):  # False also for names that the system refuses
        raise InputError(f"{setting}: expected a table at {path}, found none")
    separator, names = _header(path, columns, delimiter, quotes) if header else (delimiter, list(columns))
    for column in (*columns, *optional):
        same = [place for place, name in enumerate(names) if _key(name) == _key(column)]
        if len(same) > 1:
            twice = ", ".join(names[place] for place in same)
            raise InputError(f"{path}: expected one column {column}, found {twice}")
        if same:
            names[same[0]] = column
    if not set(columns) <= set(names):
        found = ", ".join(filter(None, names)) or "none"
        hint = "; save it as UTF-8" if "\0" in found else hint  # UTF-16 without a byte order mark
        raise InputError(f"{path}: expected columns {', '.join(columns)}, found {found}{hint}")
    rows = _rows(path, separator, quotes, comments=not header)
    if header:
        next(rows)
    row = None
    for line, row in rows:
        if short:
            row += [""] * (len(names) - len(row))
        if len(row) != len(names) and (len(row) < len(names) or any(row[len(names) :])):
            raise InputError(f"{path}: row {line}: expected {len(names)} fields, got {len(row)}")
        yield line, dict(zip(names, row))
    if row is None:
        raise InputError(f"{path}: expected at least one row, found none")


def _key(name: str) -> str:
    return plain(name).casefold()


def _header(path: Path, columns: Sequence[str], first: str, quotes: bool) -> tuple[str, list[str]]:
    """The separator that gives `columns`, or else most columns, and the columns that it gives.

    If several do, as where a column stands alone, it is `first`.
    """
    with open(path, newline="", encoding=_encoding(path), errors="replace") as file:
        given = _SEPARATOR_LINE.fullmatch(file.readline(20))
    headers: dict[str, list[str]] = {}
    fault = None
    for separator in given[1] if given else dict.fromkeys((first, *",\t;")):
        try:
            headers[separator] = next(_rows(path, separator, quotes), (0, list[str]()))[1]
        except InputError as error:  # quotes, for example, have another meaning with another separator
            fault = fault or error
    if not headers and fault:
        raise fault
    wanted = set(map(_key, columns))
    return max(headers.items(), key=lambda item: (wanted <= set(map(_key, item[1])), len(item[1])))


def _rows(
    path: Path, separator: str, quotes: bool, *, comments: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """The number of the line and the fields of each row that has any text; raises InputError."""
    encoding = _encoding(path)
    try:
        with open(path, newline="", encoding=encoding) as file:
            # A line that is left out becomes empty, so that line numbers stay those of the file.
            first = file.readline()
            first = "\n" if _SEPARATOR_LINE.fullmatch(first) else first
            lines: Iterator[str] = itertools.chain([first], file)
            if comments:
                lines = ("\n" if line.startswith("#") else line for line in lines)
            reader = csv.reader(
                lines,
                delimiter=separator,
                quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
                skipinitialspace=True,
                strict=True,
            )
            for fields in reader:
                row = list(map(plain, fields))
                if any(row):
                    yield reader.line_num, row
    except UnicodeDecodeError:
        raise InputError(_other_encoding(path, encoding)) from None
    except csv.Error as error:
        raise InputError(f"{path}: row {reader.line_num}: expected a valid CSV row: {error}") from None


def _encoding(path: Path) -> str:
    with open(path, "rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _other_encoding(path: Path, encoding: str) -> str:
    """The error for a file that isn't in `encoding`, with the line and the byte where that shows."""
    data = path.read_bytes()
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, "ignore")
        line = len(re.findall("\r\n?|\n", before)) + 1
        return (
            f"{path}: row {line}: expected UTF-8, or UTF-16 with a byte order mark, found byte "
            f'0x{data[error.start]:02x}; save the table as UTF-8 (in Excel: "CSV UTF-8")'
        )
    return f"{path}: expected a table that doesn't change while it is read"
