"""A model's log: one line of JSON for each step and each epoch, and the same for TensorBoard."""

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file

LOG = "log.jsonl"


def read_log(folder: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The records in a model's `folder` up to `last_step`.

    Lines that aren't records, such as the partial line of a killed run, are ignored.  A record is an object
    of finite numbers with a `step`, and with either `loss`, or `epoch`, `epoch_loss` and `valid`.
    """
    path = folder / LOG
    lines = path.read_bytes().splitlines() if path.is_file() else []
    records = filter(None, map(_record, lines))
    return [record for record in records if last_step is None or record["step"] <= last_step]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
        valid = found.get("valid", {})
        values = [value for name, value in found.items() if name != "valid"] + list(valid.values())
        numbers = all(map(math.isfinite, values))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    if "epoch" in found:
        whole = "epoch_loss" in found and found.get("valid", {}).keys() >= {"auc", "eer"}
    else:
        whole = "loss" in found
    return found if numbers and whole and isinstance(found.get("step"), int) else None


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The records of a model's epochs: `epoch` from 1, `epoch_loss`, and `valid`, `auc` and `eer`."""
    return [record for record in read_log(folder) if "epoch" in record]


@contextlib.contextmanager
def open_log(folder: Path, step: int) -> Iterator[Callable[..., None]]:
    """A function that appends its keywords, which include `step`, as one record, without buffering.

    Records of steps after `step`, which a killed run wrote before it could save, are dropped.
    Raises InputError if the log can't be written.
    """
    kept = read_log(folder, step)
    with whole_file(folder / LOG, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
    with open(folder / LOG, "ab", buffering=0) as file, _open_board(folder) as show:

        def write(**record: Any) -> None:
            line = (json.dumps(record) + "\n").encode()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise InputError(f"{folder / LOG}: could not be written: {error.strerror}") from None
            show(record)

        for record in kept:
            show(record)
        yield write


@contextlib.contextmanager
def _open_board(folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that appends a record's figures to a new file for TensorBoard.

    The file is only a copy of the log, so a failure to write it is not an error.
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import scalar

    for older in folder.glob("events.out.tfevents.*"):
        older.unlink()
    # SummaryWriter would write in a thread, where errors can't be caught.
    writer = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.0f}.qkd_jax"))
    with contextlib.suppress(OSError):
        writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def show(record: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            for name, value in (record | record.get("valid", {})).items():
                if name not in ("step", "valid"):
                    event = Event(wall_time=time.time(), step=record["step"], summary=scalar(name, value))
                    writer.write(event.SerializeToString())
            if "epoch" in record:
                writer.flush()

    try:
        yield show
    finally:
        with contextlib.suppress(OSError):
            writer.close()
