"""Arrays and a document in one .safetensors file, in which no damage goes unnoticed.

The document is JSON, the one entry of the file's metadata, whose key names the format.  Its first field,
`sha256`, is that of the whole file with zeros for its own digits.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as to_safetensors

from qkd_jax.config import from_json
from qkd_jax.errors import InputError

T = TypeVar("T")

ZEROS = "0" * 64
Checksum = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
MAX_FILE, MAX_HEADER = 1 << 24, 1 << 18
"""Bytes."""
_DTYPES = {"U8": "uint8", "I32": "int32", "I64": "int64", "F32": "float32", "F64": "float64"}

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape of arrays, by name."""


def sealed(form: str, document: str, arrays: Mapping[str, np.ndarray]) -> bytes:
    """The file of `arrays` and `document`, whose `sha256` is ZEROS; the same ones give the same bytes."""
    # One entry: safetensors writes several in random order.
    data = to_safetensors(dict(arrays), {form: document})
    return data.replace(ZEROS.encode(), _digest(data, ZEROS).encode(), 1)


def opened(
    data: bytes, form: str, kind: type[T], layout: Callable[[T], Layout], what: str, most: int
) -> tuple[T, dict[str, np.ndarray]]:
    """The document, of the dataclass `kind`, and the arrays that `sealed` made `data` of.

    No array is made before all are as the `layout` of the document has them.  Raises InputError, which calls
    the content `what`, for all else and for more than `most` bytes.
    """
    if len(data) > most:
        raise InputError(f"expected {what} of at most {most} bytes, found more")
    header = int.from_bytes(data[:8], "little")
    if not 8 + header <= len(data):
        raise InputError(
            f"expected a .safetensors file, whose first 8 bytes are the length of its header, "
            f"found {header} in a file of {len(data)} bytes"
        )
    if header > MAX_HEADER:
        raise InputError(f"expected metadata of at most {MAX_HEADER} bytes, found {header}")
    try:
        tensors: dict[str, Any] = dict(deserialize(data))
    except SafetensorError as error:
        raise InputError(f"expected a .safetensors file: {error}") from None
    metadata = json.loads(data[8 : 8 + header]).get("__metadata__") or {}
    if list(metadata) != [form]:
        raise InputError(f"expected metadata {[form]}, found {list(metadata)}")
    document: Any = from_json(kind, metadata[form], "metadata")
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
    """What `parse` makes of the file at `path`; its InputErrors become one line that names the file."""
    try:
        if not path.is_file():  # a pipe would wait for its writer
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
    """Raise InputError, naming an array, unless those that are `found` are as `expected`."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            wanted, got = (
                f"{of[name][0]} {list(of[name][1])}" if name in of else "none" for of in (expected, found)
            )
            raise InputError(f"{name}: expected {wanted}, got {got}")


def _digest(data: bytes, digits: str) -> str:
    return hashlib.sha256(data.replace(digits.encode(), ZEROS.encode(), 1)).hexdigest()
