"""A run's record: JSON lines, one for each step and one for each epoch."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any


class JsonLines:
    """Appends records to a file; opened at `step`, it drops what a killed run wrote after it."""

    def __init__(self, path: Path, step: int):
        kept = []
        if path.is_file():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= step]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in kept))
        self.file = open(path, "a")

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def write(self, **record: Any) -> None:
        """Append one record and hand it to the system at once."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # the half line of a killed run
        return float("inf")
