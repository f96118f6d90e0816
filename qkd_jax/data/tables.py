"""Tables of labels: comma- or tab-separated text, read row by row, with one line for each fault."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from qkd_jax.config import AnyData
from qkd_jax.errors import InputError


def data_root(config: AnyData, holds: str) -> Path:
    """The folder `config.root`; raises InputError, naming what it should hold, if there is none."""
    if config.root is None:
        raise InputError(f"--data.root: expected the folder that holds {holds}, got none")
    return Path(config.root)


def inside(name: str, where: str) -> str:
    """`name`, a path within the root, normalised; raises InputError if it leads outside.

    >>> inside("audio/../a.wav", "row 1")
    'a.wav'
    """
    normal = os.path.normpath(name) if name else ""
    if not normal or "\0" in normal or os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir:
        raise InputError(f"{where}: expected a path within --data.root, got {name!r}")
    return normal


def read_table(
    path: Path,
    columns: Sequence[str],
    *,
    setting: str,
    delimiter: str = ",",
    header: bool = True,
    short: bool = False,
    hint: str = "",
) -> Iterator[tuple[int, dict[str, str]]]:
    """Read the table at `path` row by row: the number of its line, and its fields by column.

    The table is UTF-8, with or without a byte order mark; empty lines and blanks after a delimiter are
    ignored.  It must have `columns` and may have others.  Without a `header` it has exactly `columns`, and
    lines that begin with # are comments.  With `short`, rows may lack their last fields, which are then empty.

    Raises InputError, as it reads, for a missing file (naming the flag `setting`), another encoding, a missing
    column (adding `hint`, and the separator that the header seems to use), a row with too few or too many
    fields, an open quote, and a table without rows.
    """
    if not os.path.isfile(path):  # False also for names that the system refuses
        raise InputError(f"{setting}: expected a table at {path}, found none")
    with open(path, newline="", encoding="utf-8-sig") as file:
        # A comment becomes an empty line, so that line numbers stay those of the file.
        lines = file if header else ("\n" if line.startswith("#") else line for line in file)
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        rows = filter(None, reader)
        try:
            found = next(rows, []) if header else list(columns)
            if len(set(found)) < len(found):
                raise InputError(f"{path}: expected each column once, found {', '.join(found)}")
            if not set(columns) <= set(found):
                raise InputError(
                    f"{path}: expected columns {', '.join(columns)}; found {', '.join(found) or 'none'}"
                    f"{_separator_hint(found, columns, delimiter) or hint}"
                )
            row = None
            for row in rows:
                if short:
                    row += [""] * (len(found) - len(row))
                if len(row) != len(found):
                    raise InputError(
                        f"{path}: row {reader.line_num}: expected {len(found)} fields, got {len(row)}"
                    )
                yield reader.line_num, dict(zip(found, row))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: expected a table in UTF-8: {error}") from None
        except csv.Error as error:
            raise InputError(f"{path}: row {reader.line_num}: expected a row of a table: {error}") from None
    if row is None:
        raise InputError(f"{path}: expected rows, found none")


def _separator_hint(header: Sequence[str], columns: Sequence[str], delimiter: str) -> str:
    """Advice if the header splits into `columns` at another separator; else nothing."""
    names = {",": "a comma", "\t": "a tab", ";": "a semicolon"}
    for other, name in names.items():
        if other != delimiter and set(columns) <= {
            column.strip() for column in delimiter.join(header).split(other)
        }:
            remedy = "a name that ends in .tsv" if other == "\t" else f"{names[delimiter]} between columns"
            return f"; the columns seem to be separated by {name}: expected {remedy}"
    return ""
