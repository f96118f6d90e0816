"""Find events in sound of any length: python detect.py MODEL FILE… [--false-alarms 1] [--format json]

A FILE of - is standard input: samples at the model's rate, mono, 16-bit little-endian, without a header.
A FILE of mic is the microphone (pip install -e '.[microphone]').
"""

import dataclasses
import os
import sys
from collections.abc import Iterator
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from qkd_jax.command import override, run_command
from qkd_jax.config import DetectConfig, InputError

if TYPE_CHECKING:
    import numpy as np

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

    from qkd_jax.deploy.artefact import load
    from qkd_jax.deploy.events import Event, detect
    from qkd_jax.deploy.formats import lines

    model, *files = names
    detector = load(Path(model))
    settings = settings_from(DetectConfig(detection=detector.detection), arguments[len(names) :])
    detector = dataclasses.replace(detector, detection=settings.chosen(detector.events))
    rate, failed = detector.features.sample_rate, []

    def found() -> Iterator[tuple[str, Event]]:
        for file in files:
            try:
                yield from ((file, event) for event in detect(detector, _blocks(file, rate)))
            except InputError as error:
                failed.append(str(error))

    try:
        for line in lines(settings.format, found(), files, detector.events):
            print(line, flush=True)
    except BrokenPipeError:
        # Whoever read has enough; else Python would fail to flush once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # nothing is lost that could be gone on with
    if failed:
        raise InputError(*failed)


def _blocks(file: str, rate: int) -> "Iterator[np.ndarray]":
    if file == "mic":
        from qkd_jax.audio.microphone import microphone_blocks

        return microphone_blocks(rate)
    if file != "-":
        from qkd_jax.audio.io import audio_blocks

        return audio_blocks(file, rate, silent=True)
    from qkd_jax.deploy.stream import raw_blocks

    if sys.stdin is None:
        raise InputError("standard input: expected samples, found it closed")
    return raw_blocks(sys.stdin.buffer)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
