"""Settings to JSON and back."""

import functools
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from qkd_jax.errors import InputError, explain

T = TypeVar("T")
_adapter: Any = functools.cache(TypeAdapter)


def to_json(config: Any) -> str:
    """`config` as JSON; `from_json` gives an equal one."""
    return _adapter(type(config)).dump_json(config, indent=2).decode()


def from_json(kind: type[T], text: str, where: str) -> T:
    """The `kind` that `text` holds; raises InputError that names `where` and the field."""
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error)}") from None
