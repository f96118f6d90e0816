"""What detect.py has heard so far, in a file: a stream that was stopped goes on as if it had not been.

Beside the document, which says whose state it is, lie `samples`, the cells h and c of each layer of each
carrier (cells.CARRIER.0 …), and what is known of events that are not yet over.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from qkd_jax.config import EventConfig, step_samples, to_json
from qkd_jax.config.fields import RuntimeName
from qkd_jax.detector.codes import CELL
from qkd_jax.detector.container import MAX_FILE, ZEROS, Checksum, Layout, opened, read, sealed
from qkd_jax.detector.events import Event, Heard, Rule, Spans, begin, hear, rule_of
from qkd_jax.detector.stream import Runtime, Stream
from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file
from qkd_jax.system.interrupt import asked_to_stop

FORMAT = "qkd_jax state, version 1"
_SECONDS = 60
_LOUDEST = 1e6  # full scale is 1
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Owner:
    """Whose state it is: of a file of `model`'s sha256, in a runtime, with what an event is."""

    model: Checksum
    runtime: RuntimeName
    event_config: EventConfig


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class _Document:
    """The JSON in the file's metadata; the numbers are those of a `Stream`, `unread` that of its samples."""

    sha256: Checksum = ZEROS
    owner: Owner
    unread: Annotated[int, Field(ge=0)]
    skip: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0, le=1 << 52)]


def owner(model: Path, runtime: RuntimeName, event_config: EventConfig) -> Owner:
    """The owner of states of the detector in the file `model`."""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    return Owner(model=digest, runtime=runtime, event_config=event_config)


def go_on(path: Path, of: Owner, runtime: Runtime) -> Heard:
    """The state at `path`, or that before the first block if there is none, which is then kept there.

    Raises InputError as `load` and `save` do.
    """
    if path.exists():
        return load(path, of, runtime)
    heard = begin(runtime, rule_of(runtime.detector))
    save(path, of, heard)  # or else what can't be written would be noticed late
    return heard


def detect_on(
    path: Path, of: Owner, runtime: Runtime, heard: Heard, blocks: Iterable[np.ndarray]
) -> Iterator[Event]:
    """Events as `events.detect_in`'s, from the state `heard` on.

    Those that are not over when `blocks` end are not said: they go on where the next blocks begin.  The state
    is kept at `path` when blocks end or a stop is asked for (`stop.py`), and before that after a block with
    events, and each minute.  A block is heard once what follows its events is asked for: until then they may
    not have been said.  Raises InputError as `save` does, and for blocks that are no waveform.
    """
    rule, kept = rule_of(runtime.detector), heard
    try:
        for block in blocks:
            after, events = hear(runtime, rule, heard, block)
            yield from events
            heard = after
            if events or (heard.stream.steps - kept.stream.steps) * rule.clock.step >= _SECONDS:
                save(path, of, heard)
                kept = heard
            if asked_to_stop():
                break
    finally:
        save(path, of, heard)


def save(path: Path, of: Owner, heard: Heard) -> None:
    """Write the state to `path`, whole or not at all; raises InputError if it can't be."""
    stream = heard.stream
    document = _Document(owner=of, unread=len(stream.samples), skip=stream.skip, steps=stream.steps)
    data = sealed(FORMAT, to_json(document), _arrays(heard))
    with whole_file(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # devices lose power


def load(path: Path, of: Owner, runtime: Runtime) -> Heard:
    """The state that `save` wrote to `path`.

    Raises InputError, of one line, if it is damaged, another's than `of`, or such as no stream leaves.
    """
    return read(path, lambda data: _parse(data, of, runtime), "a state", MAX_FILE)


def _parse(data: bytes, of: Owner, runtime: Runtime) -> Heard:
    rule = rule_of(runtime.detector)

    def layout(document: _Document) -> Layout:
        for name, value in _said(of).items():
            found = _said(document.owner)[name]
            if found != value:
                raise InputError(f"expected a state with {name} {value}, found one with {found}")
        return _layout(document, runtime, rule)

    document, arrays = opened(data, FORMAT, _Document, layout, "a state", MAX_FILE)
    carriers = tuple(
        tuple(arrays[f"cells.{carrier}.{index}"] for index in range(len(cells)))
        for carrier, cells in enumerate(begin(runtime, rule).stream.carriers)
    )
    medians = max(document.steps - rule.around, 0)
    heard = Heard(
        Stream(arrays["samples"], document.skip, carriers, document.steps),
        Spans(arrays["recent"], medians, arrays["first"], arrays["last"], arrays["peak"]),
    )
    _check(heard, runtime)
    return heard


def _said(of: Owner) -> dict[str, Any]:
    """What is in `of`, the longest last."""
    return {"model": of.model, "runtime": of.runtime} | dict(reversed(vars(of.event_config).items()))


def _arrays(heard: Heard) -> dict[str, np.ndarray]:
    stream, spans = heard
    return {
        "samples": np.ascontiguousarray(stream.samples),
        **{
            f"cells.{carrier}.{index}": np.ascontiguousarray(cell)
            for carrier, cells in enumerate(stream.carriers)
            for index, cell in enumerate(cells)
        },
        "recent": np.ascontiguousarray(spans.recent),
        **{name: getattr(spans, name) for name in ("first", "last", "peak")},
    }


def _layout(document: _Document, runtime: Runtime, rule: Rule) -> Layout:
    window, hop = step_samples(runtime.detector.features, runtime.detector.network)
    events, steps = len(rule.events), document.steps
    if document.unread >= window or document.skip > (0 if document.unread else hop):
        raise InputError(
            f"unread, skip: expected fewer than {window} samples to read, or up to {hop} to pass over, "
            f"found {document.unread} and {document.skip}"
        )
    recent = min(rule.around + steps, 2 * rule.around) if steps else 0
    fixed = {name: (str(array.dtype), array.shape) for name, array in _arrays(begin(runtime, rule)).items()}
    return fixed | {"samples": ("float32", (document.unread,)), "recent": ("float32", (recent, events))}


def _check(heard: Heard, runtime: Runtime) -> None:
    """Raise InputError for values that no stream leaves."""
    (samples, _, carriers, _), spans = heard
    half = 1 << (runtime.detector.network.quant.activations - 1)
    first, last, peak = spans[2:]
    on = first >= 0
    sound = {
        "samples": (np.abs(samples) < _LOUDEST).all(),  # nor NaN
        "recent": np.isfinite(spans.recent).all(),
        "first": first.min() >= -1 and first.max() < spans.steps,
        "last": last.min() >= -2 and last.max() < spans.steps and (last >= first)[on].all(),
        "peak": np.where(on, np.isfinite(peak), np.isneginf(peak)).all(),
    }
    for carrier, cells in enumerate(carriers):
        for index, cell in enumerate(cells):
            largest = 1 << (CELL - 1) if index % 2 else half
            inside = cell.min() >= -largest and cell.max() < largest
            sound[f"cells.{carrier}.{index}"] = inside if cell.dtype == np.int32 else np.isfinite(cell).all()
    for name, good in sound.items():
        if not good:
            raise InputError(f"{name}: expected what a stream leaves, found other numbers")
