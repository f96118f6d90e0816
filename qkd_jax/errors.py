"""Invalid user input, reported in printable lines, and the text for libraries' exceptions."""

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


@contextlib.contextmanager
def noted(errors: "list[InputError] | None") -> Iterator[None]:
    """Add an InputError within the block to `errors`, so that a check goes on; with None, let it pass."""
    try:
        yield
    except InputError as error:
        if errors is None:
            raise
        errors.append(error)


class InputError(ValueError):
    """Invalid user input.  The message names the file or field, what was expected, and what was found.

    Each of `lines` is made printable and cut to 1000 characters, whatever a hostile file holds.

    >>> str(InputError("gate.wav: expected samples, found none"))
    'gate.wav: expected samples, found none'
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(map(_shortened, lines)))


def _shortened(line: str) -> str:
    # The beginning names the file or field, the end the fault.
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
    "dataclass": "a JSON object",
    "dataclass_exact": "a {class_name}",
    "dict": "a JSON object",
    "finite_number": "a finite number",
    "float": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int": "an integer",
    "int_from_float": "an integer",
    "json_invalid": "valid JSON: {error}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list": "a list",
    "literal_error": "{expected}",
    "missing": "a value",
    "string": "text",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "at least {min_length} character",
    "string_unicode": "valid Unicode text",
    "too_long": "at most {max_length} values",
    "too_short": "at least {min_length} value",
    "tuple": "a list",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "a value",
}
"""The expectation per type of pydantic error, without _type and _parsing; {} come from its context."""


def explain(error: "ValidationError") -> str:
    """One line for pydantic's errors: for each the field, what was expected, and what was found.

    >>> import pydantic
    >>> try:
    ...     pydantic.TypeAdapter(dict[str, int]).validate_python({"seed": "one"})
    ... except pydantic.ValidationError as error:
    ...     explain(error)
    "seed: expected an integer, got 'one'"
    """

    def line(item: Any) -> str:
        kind = re.sub("_(type|parsing)$", "", item["type"])
        kind = "missing" if kind.startswith("missing") else kind
        context = {name: _whole(value) for name, value in item.get("ctx", {}).items()}
        field = [context["discriminator"].strip("'")] if kind.startswith("union_tag") else []
        place = ".".join(str(part) for part in [*item["loc"], *field])
        message = item["msg"].removeprefix("Value error, ")
        if expected := _EXPECTED.get(kind):
            message = f"expected {expected.format_map(context)}"
        if kind == "unexpected_keyword_argument":
            message = "unknown field"
        elif kind in ("missing", "union_tag_not_found"):
            message += ", found none"
        elif kind != "value_error":
            message += f", got {context.get('tag', item['input'])!r:.{_MAX_VALUE}}"
        return f"{place}: {message}" if place else message

    return "; ".join(line(item) for item in error.errors()[:_MAX_FAULTS])


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and value < 1e15 else value
