"""Files that can be read, and files that are written atomically."""

import contextlib
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from qkd_jax.errors import InputError


def check_file(path: Path, what: str) -> None:
    """Raise InputError, expected `what`, unless `path` is a file that can be read.

    A pipe or a device is refused before anything is read: it may block, or never end.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb"):
                return
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    except FileNotFoundError:
        found = "none"
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        found = f"one that can't be read: {getattr(error, 'strerror', None) or error}"
    raise InputError(f"{path}: expected {what}, found {found}")


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
