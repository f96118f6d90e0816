"""Arrays and a JSON document in one .safetensors file with a checksum, so that any damage is detected.

The document is the only entry of the file's metadata; its key names the format.  The document's first field,
`sha256`, is the SHA-256 of the whole file, computed with zeros in place of its own digits.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AliasChoices, Field
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as to_safetensors

from qkd_jax.config import EventConfig, from_json
from qkd_jax.errors import InputError

T = TypeVar("T")

ZEROS = "0" * 64
Checksum = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
StoredEventConfig = Annotated[EventConfig, Field(validation_alias=AliasChoices("event_config", "detection"))]
"""An EventConfig in a file; earlier releases called the field `detection`."""
MAX_FILE, MAX_HEADER = 1 << 24, 1 << 18
"""Limits in bytes."""
_DTYPES = {"U8": "uint8", "I32": "int32", "I64": "int64", "F32": "float32", "F64": "float64"}

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape of each array, by name."""


def sealed(form: str, document: str, arrays: Mapping[str, np.ndarray]) -> bytes:
    """The file of `arrays` and `document`, whose `sha256` must be ZEROS; equal arguments give equal bytes."""
    # A single entry: safetensors writes several in random order.
    data = to_safetensors(dict(arrays), {form: document})
    return data.replace(ZEROS.encode(), _digest(data, ZEROS).encode(), 1)


def opened(
    data: bytes,
    form: str,
    kind: type[T],
    layout: Callable[[T], Layout],
    what: str,
    most: int,
    older: Mapping[str, Callable[[str], str]] = {},
) -> tuple[T, dict[str, np.ndarray]]:
    """The document, a dataclass `kind`, and the arrays of a file that `sealed` wrote.

    `older` maps each earlier format to the function that converts its document to `form`.  No array is
    created before all of them match the document's `layout`.  Raises InputError, which calls the content
    `what`, for anything else, and for more than `most` bytes.
    """
    if len(data) > most:
        raise InputError(f"expected {what} of at most {most} bytes, found more")
    header = int.from_bytes(data[:8], "little")
    if not 8 + header <= len(data):
        raise InputError(f"expected {what} in a .safetensors file, found other or truncated content")
    if header > MAX_HEADER:
        raise InputError(f"expected metadata of at most {MAX_HEADER} bytes, found {header}")
    try:
        tensors: dict[str, Any] = dict(deserialize(data))
    except SafetensorError as error:
        raise InputError(f"expected a .safetensors file: {error}") from None
    metadata = json.loads(data[8 : 8 + header]).get("__metadata__") or {}
    found, *others = metadata or [None]
    if others or found not in (form, *older):
        raise InputError(f"expected metadata {[form]}, found {list(metadata)}")
    text = older[found](metadata[found]) if found in older else metadata[found]
    document: Any = from_json(kind, text, "metadata")
    digest = _digest(data, document.sha256)
    if digest != document.sha256:
        raise InputError(f"damaged: expected the checksum {document.sha256}, got {digest}")
    expected = layout(document)
    expect(
        {name: (_DTYPES.get(of["dtype"], of["dtype"]), tuple(of["shape"])) for name, of in tensors.items()},
        expected,
    )
    return document, {
        name: np.frombuffer(tensors[name]["data"], dtype).reshape(shape)
        for name, (dtype, shape) in expected.items()
    }


def read(path: Path, parse: Callable[[bytes], T], what: str, most: int) -> T:
    """The result of `parse` on the content of the file at `path`; its InputErrors get the file's name."""
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            raise InputError(f"{path}: expected {what}'s file, found none")
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path}: could not be read: {error.strerror}") from None
    try:
        return parse(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def expect(found: Layout, expected: Layout) -> None:
    """Raise InputError, naming the first array that differs, unless `found` equals `expected`."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            wanted, got = (
                f"{of[name][0]} {list(of[name][1])}" if name in of else "none" for of in (expected, found)
            )
            raise InputError(f"{name}: expected {wanted}, got {got}")


def _digest(data: bytes, digits: str) -> str:
    return hashlib.sha256(data.replace(digits.encode(), ZEROS.encode(), 1)).hexdigest()
