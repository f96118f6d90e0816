"""Tables of sources: comma- or tab-separated text, read row by row, each fault said in one line."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from qkd_jax.config import DataConfig
from qkd_jax.errors import InputError


def data_root(config: DataConfig, holds: str) -> Path:
    """`config.root`; raises InputError that names what it `holds` if there is none."""
    if config.root is None:
        raise InputError(f"data.root: expected the folder that holds {holds}, got none")
    return Path(config.root)


def inside(name: str, where: str) -> str:
    """`name`, a path within the root, in its shortest form; raises InputError if it leads elsewhere."""
    normal = os.path.normpath(name) if name else ""
    if not normal or "\0" in normal or os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir:
        raise InputError(f"{where}: expected a path within data.root, got {name!r}")
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
    """The rows of the table at `path`, one by one: number of its line, and fields by column.

    The table is UTF-8, with or without a byte order mark; empty lines are no rows, and blanks
    after a delimiter don't count.  It has `columns` and maybe others.  Without a `header` these
    are all that it has, and lines that begin with # are comments.  Rows may be `short` of their
    last fields, which are empty then.

    Raises InputError as it reads: there is no file (names `setting`), the encoding, a column
    that is missing (adds `hint`), a row with too few or too many fields, a quote that isn't closed, no rows.
    """
    if not os.path.isfile(path):  # nor a name that the system refuses
        raise InputError(f"{setting}: expected a table at {path}, found none")
    with open(path, newline="", encoding="utf-8-sig") as file:
        # A comment becomes an empty line, so that numbers of lines stay the file's.
        lines = file if header else ("\n" if line.startswith("#") else line for line in file)
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        rows = filter(None, reader)
        try:
            found = next(rows, []) if header else list(columns)
            if len(set(found)) < len(found):
                raise InputError(f"{path}: expected each column once, found {', '.join(found)}")
            if not set(columns) <= set(found):
                raise InputError(
                    f"{path}: expected columns {', '.join(columns)}; found {', '.join(found) or 'none'}{hint}"
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
