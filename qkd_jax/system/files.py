"""Writing files atomically."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from qkd_jax.errors import InputError


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block succeeds, and is deleted when it fails.

    Parent folders are created.  A process killed halfway leaves `path` as it was, and a file that ends in
    .part, which nothing reads.  Raises InputError if the file can't be written.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, mode, **text) as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: could not be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
