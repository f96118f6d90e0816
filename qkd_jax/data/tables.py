"""Tables of labels: comma- or tab-separated text, read row by row, with one line per error."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from qkd_jax.config import AnyData
from qkd_jax.errors import InputError


def data_root(config: AnyData, holds: str) -> Path:
    """The folder `config.root`; raises InputError, naming the expected content, if there is none."""
    if config.root is None:
        raise InputError(f"--data.root: expected the folder that contains {holds}, got none")
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
    named_by: str = "",
) -> Iterator[tuple[int, dict[str, str]]]:
    """Read the table at `path` row by row: the number of its line, and its fields by column.

    The table is UTF-8, with or without a byte order mark; empty lines and blanks after a delimiter are
    ignored.  It must have `columns` and may have others.  Without a `header` it has exactly `columns`, and
    lines that begin with # are comments.  With `short`, rows may lack their last fields, which are then
    empty.

    Raises InputError, as it reads, for a missing file (naming the flag `setting`), another encoding, a row
    with too few or too many fields, an open quote, a table without rows, and a missing column; the last ends
    with advice if the header seems to have another separator (a file name given by the flag `named_by` may
    select it), otherwise with `hint`.
    """
    if not os.path.isfile(path):  # False also for names that the system refuses
        raise InputError(f"{setting}: expected a table at {path}, found none")
    with open(path, newline="", encoding="utf-8-sig") as file:
        # A comment becomes an empty line, so that line numbers stay those of the file.
        lines = file if header else ("\n" if line.startswith("#") else line for line in file)
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        rows = filter(None, reader)
        try:
            names = next(rows, []) if header else list(columns)
            if len(set(names)) < len(names):
                raise InputError(f"{path}: expected each column once, found {', '.join(names)}")
            if not set(columns) <= set(names):
                raise InputError(
                    f"{path}: expected columns {', '.join(columns)}, found {', '.join(names) or 'none'}"
                    f"{_separator_hint(names, delimiter, named_by) or hint}"
                )
            row = None
            for row in rows:
                if short:
                    row += [""] * (len(names) - len(row))
                if len(row) != len(names):
                    raise InputError(
                        f"{path}: row {reader.line_num}: expected {len(names)} fields, got {len(row)}"
                    )
                yield reader.line_num, dict(zip(names, row))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: expected a table in UTF-8: {error}") from None
        except csv.Error as error:
            raise InputError(f"{path}: row {reader.line_num}: expected a valid CSV row: {error}") from None
    if row is None:
        raise InputError(f"{path}: expected at least one row, found none")


_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
_SUFFIXES = {",": ".csv", "\t": ".tsv"}


def _separator_hint(names: Sequence[str], delimiter: str, named_by: str) -> str:
    """Advice if the columns `names` seem to have another separator than `delimiter`, else the empty string.

    >>> _separator_hint(["filename;labels"], ",", "")
    '; columns seem to be separated by semicolons, expected commas'
    """
    counts = {other: sum(name.count(other) for name in names) for other in _SEPARATORS if other != delimiter}
    other = max(counts, key=lambda separator: counts[separator])
    if counts[other] < max(len(names), 1):
        return ""
    hint = f"; columns seem to be separated by {_SEPARATORS[other]}, expected {_SEPARATORS[delimiter]}"
    if named_by and other in _SUFFIXES:
        hint += f" or a name ending in {_SUFFIXES[other]} ({named_by})"
    return hint
