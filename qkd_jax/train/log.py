"""A model's record: JSON lines, one for each step and one for each epoch, and the same for TensorBoard."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qkd_jax.config import InputError
from qkd_jax.files import whole_file

LOG = "log.jsonl"


def read_log(folder: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The records in a model's `folder` up to `last_step`, without the half line of a killed run."""
    path, records = folder / LOG, []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if last_step is None or record["step"] <= last_step]


@contextlib.contextmanager
def open_log(folder: Path, step: int) -> Iterator[Callable[..., None]]:
    """A function that adds its keywords, `step` among them, as one record, handed to the system at once.

    Records of steps after `step`, which a killed run wrote before it could save, are dropped.
    """
    from tensorboardX import SummaryWriter

    kept = read_log(folder, step)
    for events in folder.glob("events.out.tfevents.*"):
        events.unlink()
    with whole_file(folder / LOG, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
    with open(folder / LOG, "a") as file, SummaryWriter(str(folder)) as board:

        def show(record: dict[str, Any]) -> None:
            for name, value in (record | record.get("valid", {})).items():
                if name not in ("step", "valid"):
                    board.add_scalar(name, value, record["step"])

        def write(**record: Any) -> None:
            try:
                file.write(json.dumps(record) + "\n")
                file.flush()
            except OSError as error:
                raise InputError(f"{folder / LOG}: could not be written: {error.strerror}") from None
            show(record)

        for record in kept:
            show(record)
        yield write
