"""A run's record: JSON lines, one for each step and one for each epoch."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def json_lines(path: Path, step: int) -> Iterator[Callable[..., None]]:
    """A function that appends its keywords to `path` as one line, handed to the system at once.

    Lines of steps after `step`, which a killed run wrote before it could save, are dropped.
    """
    kept = []
    if path.is_file():
        kept = [line for line in path.read_text().splitlines() if _step(line) <= step]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in kept))
    with open(path, "a") as file:

        def write(**record: Any) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        yield write


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:  # the half line of a killed run
        return float("inf")
