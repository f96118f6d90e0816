"""Invalid user input, as one printable line each, and what a library's exception says of it."""

import contextlib
import re
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

_MAX_LINE, _MAX_VALUE, _MAX_FAULTS = 1000, 200, 10
"""Limits on error messages: characters of a line, characters of a quoted value, faults listed."""
_LINE_BREAKS = {"Cc", "Cs", "Zl", "Zp"}
_TEXT_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class InputError(ValueError):
    """Invalid user input.  The message names the file or field, what was expected, and what was found.

    Each of `lines` is made printable and cut to 1000 characters, whatever a hostile file holds.

    >>> str(InputError("gate.wav: expected samples, found none"))
    'gate.wav: expected samples, found none'
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(map(_shortened, lines)))


def _shortened(line: str) -> str:
    # The beginning says where the fault is, the end says what it is.
    half = _MAX_LINE // 2
    return printable(line if len(line) <= _MAX_LINE else f"{line[: half - 1]}…{line[-half:]}")


def printable(text: str) -> str:
    """`text` with `?` for every character that would break a line or disturb a terminal.

    >>> printable("dog\\nbark")
    'dog?bark'
    """
    return "".join(
        "?" if unicodedata.category(letter) in _LINE_BREAKS or letter in _TEXT_DIRECTION else letter
        for letter in text
    )


def flag(field: str) -> str:
    """A setting as it is typed on the command line.

    >>> flag("data.filename_column")
    '--data.filename-column'
    """
    return "--" + field.replace("_", "-")


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or the name of its class if it has none.

    >>> first_line(ValueError())
    'ValueError'
    """
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def naming(where: object, expected: str) -> Iterator[None]:
    """Turn any exception within the block into an InputError: `where`: expected `expected`: its message.

    InputErrors pass unchanged.  For libraries whose exceptions have no common class.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{where}: expected {expected}: {first_line(error)}") from None


_EXPECTED = {
    "bool": "true or false",
    "bytes": "bytes",
    "dataclass": "an object",
    "dataclass_exact": "an object",
    "dict": "an object",
    "finite_number": "a finite number",
    "float": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int": "a whole number",
    "int_from_float": "a whole number",
    "json_invalid": "JSON: {error}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list": "a list",
    "literal_error": "{expected}",
    "missing": "a value",
    "string": "text",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "{min_length} or more characters",
    "string_unicode": "text without surrogates",
    "too_long": "{max_length} or fewer values",
    "too_short": "{min_length} or more values",
    "tuple": "a list",
    "union_tag_invalid": "{discriminator} {expected_tags}",
    "union_tag_not_found": "a value for {discriminator}",
    "unexpected_keyword_argument": "no such field",
}
"""What was expected, by pydantic's type of error without _type and _parsing; {} come from its context."""


def explain(error: "ValidationError") -> str:
    """One line for pydantic's errors: for each the field, what was expected, and what was found.

    >>> import pydantic
    >>> try:
    ...     pydantic.TypeAdapter(dict[str, int]).validate_python({"seed": "one"})
    ... except pydantic.ValidationError as error:
    ...     explain(error)
    "seed: expected a whole number, got 'one'"
    """

    def line(item: Any) -> str:
        place = ".".join(str(part) for part in item["loc"])
        kind = re.sub("_(type|parsing)$", "", item["type"])
        missing = kind.startswith("missing")
        message = item["msg"].removeprefix("Value error, ")
        if expected := _EXPECTED.get("missing" if missing else kind):
            limits = {name: _whole(value) for name, value in item.get("ctx", {}).items()}
            message = f"expected {expected.format_map(limits)}"
        if kind != "value_error":
            message += ", got none" if missing else f", got {item['input']!r:.{_MAX_VALUE}}"
        return f"{place}: {message}" if place else message

    return "; ".join(line(item) for item in error.errors()[:_MAX_FAULTS])


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
