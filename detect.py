"""Find events in sound of any length: python detect.py MODEL FILE… [--false-alarms 1] [--format json]

A FILE of - is standard input: samples at the model's rate, mono, 16-bit little-endian, without a header.
A FILE of mic is the microphone (pip install -e '.[microphone]').

With --state FILE a stream, - or mic, may be stopped (Ctrl-C, SIGTERM, its end) and gone on with by the same
command, as if it had not been: nothing that was read is lost, nothing said twice, and times count on from the
first start.  Killed outright, it goes on from the last event, or the last minute of sound; and where nobody
read on what it said, from before the block that it said it of.
"""

import contextlib
import dataclasses
import os
import select
import sys
from collections.abc import Iterator
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from qkd_jax.commands.cli import override, run_command
from qkd_jax.config import DetectConfig
from qkd_jax.errors import InputError
from qkd_jax.system.interrupt import asked_to_stop, stop_if_asked, stop_requests

if TYPE_CHECKING:
    import numpy as np

_PATIENCE = 0.2  # seconds from a stop request until it is seen
settings_from = partial(override, prog="detect.py MODEL FILE…", description=__doc__)


def main(arguments: list[str]) -> None:
    """`arguments` start with a model's file and those of recordings."""
    if "--help" in arguments or "-h" in arguments:
        settings_from(DetectConfig(), ["--help"])
    names = list(takewhile(lambda argument: not argument.startswith("--"), arguments))
    if len(names) < 2:
        raise InputError(f"expected a model and recordings first. {__doc__.splitlines()[0]}")
    # A product of one vector takes several threads longer than one.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from qkd_jax.commands.event_text import lines
    from qkd_jax.detector.events import Event, detect_in
    from qkd_jax.detector.file import load
    from qkd_jax.runtimes.streams import open_runtime

    model, *files = names
    detector = load(Path(model))
    settings = settings_from(DetectConfig(detection=detector.detection), arguments[len(names) :])
    detector = dataclasses.replace(detector, detection=settings.chosen(detector.events))
    if settings.state and files not in (["-"], ["mic"]):
        raise InputError(f"state: expected one stream, - or mic, that may go on, got {', '.join(files)}")
    runtime, rate = open_runtime(settings.runtime, detector), detector.features.sample_rate
    find, failed = partial(detect_in, runtime), []
    if settings.state:
        from qkd_jax.detector.resume import detect_on, go_on, owner

        kept = Path(settings.state), owner(Path(model), settings.runtime, detector.detection), runtime
        find = partial(detect_on, *kept, go_on(*kept))

    def found() -> Iterator[tuple[str, Event]]:
        for file in files:
            try:
                blocks = _blocks(file, rate, stoppable=bool(settings.state))
                yield from ((file, event) for event in find(blocks))
            except InputError as error:
                failed.append(str(error))

    try:
        with stop_requests() if settings.state else contextlib.nullcontext():
            for line in lines(settings.format, found(), files, detector.events):
                print(line, flush=True)
            if not failed:
                stop_if_asked()
    except BrokenPipeError:
        # Whoever read has enough; else Python would fail to flush once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        if settings.state:
            raise
        raise SystemExit(130) from None  # nothing is lost that could be gone on with
    if failed:
        raise InputError(*failed)


def _blocks(file: str, rate: int, *, stoppable: bool) -> "Iterator[np.ndarray]":
    if file == "mic":
        from qkd_jax.audio.microphone import microphone_blocks

        return microphone_blocks(rate)
    if file != "-":
        from qkd_jax.audio.reading import audio_blocks

        return audio_blocks(file, rate, silent=True)
    from qkd_jax.detector.stream import raw_blocks

    if sys.stdin is None:
        raise InputError("standard input: expected samples, found it closed")
    return raw_blocks(sys.stdin.buffer.raw, _some if stoppable else lambda: True)


def _some() -> bool:
    """Wait for something on standard input; False if a stop is asked for before."""
    while not asked_to_stop():
        if select.select([sys.stdin], [], [], _PATIENCE)[0]:
            return True
    return False


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
