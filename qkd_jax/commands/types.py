"""Types of settings: the dataclasses in them, the tags of their unions, and None."""

import dataclasses
import types
import typing
from typing import Any


def dataclasses_in(hint: Any) -> list[Any]:
    """The dataclasses in a type: itself, or the members of a union."""
    if typing.get_origin(hint) is typing.Annotated:
        return dataclasses_in(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [each for part in typing.get_args(hint) for each in dataclasses_in(part)]
    return [hint] if dataclasses.is_dataclass(hint) else []


def tag_of(kind: Any) -> str:
    """The discriminator field of a class in a union: the one with a single possible value."""
    return next(
        name
        for name, hint in typing.get_type_hints(kind).items()
        if typing.get_origin(hint) is typing.Literal and len(typing.get_args(hint)) == 1
    )


def plain(hint: Any) -> Any:
    """A type without Annotated and None."""
    if typing.get_origin(hint) is typing.Annotated:
        return plain(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return plain(parts[0]) if len(parts) == 1 else hint
    return hint
