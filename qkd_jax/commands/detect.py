"""Detect acoustic events in recordings or a live stream with an exported detector."""

import contextlib
import dataclasses
import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from qkd_jax.commands.cli import discard
from qkd_jax.commands.override import override
from qkd_jax.config import EventConfig
from qkd_jax.config.fields import STRICT, Count, Rate, RuntimeName, SampleFormat
from qkd_jax.errors import InputError
from qkd_jax.system.interrupt import asked_to_stop, stop_if_asked, stop_requests

if TYPE_CHECKING:
    import numpy as np

    from qkd_jax.audio.encoding import Encoding
    from qkd_jax.detector.detector import Detector
    from qkd_jax.detector.events import Event

    Blocks = Iterable[np.ndarray]

DESCRIPTION = """\
Detect events in recordings of any length.  MODEL is a .safetensors file written by `qkd-jax export`.
FILE is a recording in any format, - (standard input: a recording, or samples without a header) or mic
(microphone).

A stream (- or mic) with --state can be stopped and continued with the same command, with the same events.
After a crash it resumes from the last saved state (after each event and once per minute of sound); later
events are printed again.
"""
_POLL_SECONDS = 0.2
_THRESHOLD = re.compile(r"(.+=)?\d*\.?\d+(e-?\d+)?$")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DetectOptions:
    """Detection and output settings."""

    format: Literal["table", "json", "audacity", "desed"] = "table"
    """A table, one JSON object per line, labels for Audacity, or DESED's tab-separated table, whose
    file names have folders only where two are equal without."""
    false_alarms: str | None = None
    """Operating point, in false alarms per hour: 10 or 10/h."""
    threshold: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Thresholds that replace the operating point: 0.8 for all events, or bell=0.8 knock=0.9 per event."""
    rate: Rate | None = None
    """Sample rate of standard input without a header; default: the model's."""
    sample_format: SampleFormat = "s16"
    """Its samples: unsigned or signed integers or floats, and their bits, little-endian."""
    channels: Count = 1
    """Its number of channels, interleaved."""
    channel: Count | None = None
    """Channel to read, counted from 1; default: the mean of all."""
    runtime: RuntimeName = "numpy"
    """Runtime that computes the logits; c needs a C compiler."""
    state: str | None = None
    """File that stores the stream's state, so that detection can stop and continue."""
    events: EventConfig = EventConfig()


def main(arguments: list[str], prog: str) -> None:
    """Print the events in the files that `arguments` name after the model; options may stand anywhere."""
    # Matrix-vector products are slower with several threads; NumPy reads this when it is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    names, flags = _files_and_flags(arguments)
    asked_for_help = bool({"-h", "--help", "--help-all"} & set(flags))
    if len(names) < 2 and not asked_for_help:
        got = names[0] if names else "none"
        raise InputError(f"{prog} MODEL FILE…: expected a model and at least one file, got {got}; see --help")
    detector = _load(names[0], prog) if names else None
    default = DetectOptions(events=detector.event_config) if detector else DetectOptions()
    options = override(default, flags, prog=f"{prog} MODEL FILE…", description=DESCRIPTION)
    assert detector is not None  # the help has exited
    detector = dataclasses.replace(detector, event_config=chosen_events(options, detector.events))
    _print_events(names[0], detector, names[1:], options)


def chosen_events(options: DetectOptions, events: Sequence[str]) -> EventConfig:
    """`options.events` at the operating point, or with the thresholds, that the options ask for.

    Raises InputError if there is no such point or event, or if both are asked for.
    """
    config = options.events
    if options.false_alarms and options.threshold:
        raise InputError("--false-alarms, --threshold: expected at most one, got both")
    if options.threshold:
        return dataclasses.replace(
            config, thresholds={"given": _thresholds(options.threshold, config, events)}, use="given"
        )
    if not options.false_alarms:
        return config
    point = f"{options.false_alarms.removesuffix('/h')}/h"
    if point not in config.thresholds:
        raise InputError(
            f"--false-alarms: expected {config.points}, got {point}; "
            "N/h requires at least 1/N hours of validation recordings without the event"
        )
    return dataclasses.replace(config, use=point)


def _thresholds(words: Sequence[str], config: EventConfig, events: Sequence[str]) -> dict[str, float]:
    """The threshold per event: from `words`, or else the current one."""
    present = config.thresholds[config.use] if config.use else {}
    thresholds = {event: present.get(event, 0.5) for event in events}
    for word in words:
        event, equals, number = word.rpartition("=")
        if equals and event not in events:
            raise InputError(f"--threshold: expected an event ({', '.join(events)}), got {event!r}")
        try:
            probability = float(number)
        except ValueError:
            probability = 0.0
        if not 0 < probability < 1:
            raise InputError(f"--threshold: expected a number between 0 and 1, or EVENT=NUMBER, got {word!r}")
        thresholds |= dict.fromkeys([event] if equals else events, probability)
    return thresholds


def _files_and_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are files, and the flags with their values: one each, --threshold one or more."""
    files: list[str] = []
    flags: list[str] = []
    values, more = 0, False
    for argument in arguments:
        if argument.startswith("--") or argument == "-h":
            flags.append(argument)
            alone = "=" in argument or argument in ("-h", "--help", "--help-all")
            values, more = 0 if alone else 1, argument.startswith("--threshold")
        elif values or (more and _THRESHOLD.match(argument)):
            flags.append(argument)
            values = 0
        else:
            files.append(argument)
            more = False
    return files, flags


def _load(model: str, prog: str) -> "Detector":
    from qkd_jax.detector.file import load
    from qkd_jax.runtimes import FORMATS

    path = Path(model)
    if path.suffix != ".safetensors" and path.suffix in FORMATS.values():
        raise InputError(
            f"{model}: expected a .safetensors file, got {path.suffix}; to score this file: "
            f"{prog.replace('detect', 'eval')} {model}"
        )
    return load(path)


def _print_events(model: str, detector: "Detector", files: Sequence[str], options: DetectOptions) -> None:
    from qkd_jax.commands.event_text import lines

    if options.state and list(files) not in (["-"], ["mic"]):
        raise InputError(f"--state: expected exactly one stream (- or mic), got {', '.join(files)}")
    if "-" not in files and _encoding(options, detector.features.sample_rate):
        raise InputError(
            "--rate, --sample-format, --channels: expected standard input (-), got files with headers"
        )
    find, errors = _detection(model, detector, options), list[str]()
    found = _events_in(files, find, detector.features.sample_rate, options, errors)
    try:
        with stop_requests() if options.state else contextlib.nullcontext():
            for line in lines(options.format, found, files, detector.events):
                print(line, flush=True)
            if not errors:
                stop_if_asked()
    except BrokenPipeError:
        discard(sys.stdout)  # the reader has closed the pipe
    except KeyboardInterrupt:
        if options.state:
            raise
        raise SystemExit(130) from None  # there is nothing to continue from, so nothing to report
    if errors:
        raise InputError(*errors)


def _detection(
    model: str, detector: "Detector", options: DetectOptions
) -> "Callable[[Blocks], Iterator[Event]]":
    """The function from blocks of samples to events; it saves the state if `options.state` names a file."""
    from qkd_jax.detector.events import detect_in
    from qkd_jax.runtimes import open_stream

    runtime = open_stream(options.runtime, detector)
    if not options.state:
        return partial(detect_in, runtime)
    from qkd_jax.detector.resume import detect_and_save, load_or_start, owner

    saved = Path(options.state), owner(Path(model), options.runtime, detector.event_config), runtime
    return partial(detect_and_save, *saved, load_or_start(*saved))


def _events_in(
    files: Sequence[str],
    find: "Callable[[Blocks], Iterator[Event]]",
    rate: int,
    options: DetectOptions,
    errors: list[str],
) -> "Iterator[tuple[str, Event]]":
    """The events in each of `files`, with its name; files that can't be read are added to `errors`."""
    for file in files:
        try:
            yield from ((file, event) for event in find(_blocks(file, rate, options)))
        except InputError as error:
            errors.append(str(error))


def _blocks(file: str, rate: int, options: DetectOptions) -> "Blocks":
    if file == "mic":
        from qkd_jax.audio.microphone import microphone_blocks

        return microphone_blocks(rate)
    if file != "-":
        from qkd_jax.audio.reading import audio_blocks

        return audio_blocks(file, rate, channel=options.channel)
    from qkd_jax.audio.stdin import stdin_blocks

    if sys.stdin is None:
        raise InputError("standard input: expected samples, found a closed stream")
    stdin: Any = sys.stdin.buffer  # typed without `raw`
    return stdin_blocks(
        stdin.raw,
        rate,
        raw=_encoding(options, rate),
        only_raw=options.state is not None,
        channel=options.channel,
        ready=_wait_for_input if options.state else lambda: True,
    )


def _encoding(options: DetectOptions, rate: int) -> "Encoding | None":
    """The encoding of standard input that the options give, None if they give none."""
    from qkd_jax.audio.encoding import Encoding

    if (options.rate, options.sample_format, options.channels) == (None, "s16", 1):
        return None
    if options.state and options.rate not in (None, rate):
        raise InputError(f"--rate: expected {rate}, the model's, with --state, got {options.rate}")
    return Encoding(options.sample_format, options.rate or rate, options.channels)


def _wait_for_input() -> bool:
    """Wait until standard input has data; False if a signal to stop comes first."""
    while not asked_to_stop():
        if select.select([sys.stdin], [], [], _POLL_SECONDS)[0]:
            return True
    return False
