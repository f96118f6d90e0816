"""Save and load the state of a detector on a stream, so that an interrupted stream resumes exactly.

Beside the document, which identifies the stream, the file holds `samples`, h and c of each layer of each
LSTM (cells.LSTM.0 …), and the state of the events.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qkd_jax.config import EventConfig, step_samples, to_json
from qkd_jax.config.fields import STRICT
from qkd_jax.detector import container
from qkd_jax.detector.codes import CELL_BITS
from qkd_jax.detector.container import MAX_FILE, ZEROS, Layout, opened, read, sealed
from qkd_jax.detector.events import DetectorState, Event, EventRule, EventState, begin, event_rule, process
from qkd_jax.detector.stream import Runtime, StreamState
from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file
from qkd_jax.system.interrupt import asked_to_stop

FORMAT = "qkd_jax state, version 1"
_SECONDS = 60
_LOUDEST = 1e6  # full scale is 1


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Owner:
    """The detector that a state belongs to: the SHA-256 of its file, its runtime, and its rule for events."""

    model: container.Checksum
    runtime: str
    event_config: container.StoredEventConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Document:
    """The JSON in the file's metadata: `skip` and `steps` of a `StreamState`, and its samples' number."""

    sha256: container.Checksum = ZEROS
    owner: Owner
    unread: Annotated[int, Field(ge=0)]
    skip: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0, le=1 << 52)]


def owner(model: Path, runtime: str, event_config: EventConfig) -> Owner:
    """The owner of states of the detector in the file `model`."""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    return Owner(model=digest, runtime=runtime, event_config=event_config)


def load_or_start(path: Path, owner: Owner, runtime: Runtime) -> DetectorState:
    """The state at `path`; if there is none, the state before the first block, which is saved there.

    Raises InputError as `load` and `save` do.
    """
    if path.exists():
        return load(path, owner, runtime)
    state = begin(runtime, event_rule(runtime.detector))
    save(path, owner, state)  # a path that can't be written is reported now rather than after hours
    return state


def detect_and_save(
    path: Path, owner: Owner, runtime: Runtime, state: DetectorState, blocks: Iterable[np.ndarray]
) -> Iterator[Event]:
    """Events as `events.detect_in`, from `state` on, which is saved at `path`.

    Events that are still open when `blocks` end are not reported: they continue with the next blocks.  The
    state is saved when blocks end or a stop is requested (`system/interrupt.py`), and before that after
    each block with events, and once per minute of sound.  A block counts as processed only when the caller
    asks for more after its last event: until then its events may not have been reported.  Raises InputError
    as `save` does, and for blocks that are not a waveform.
    """
    rule, saved = event_rule(runtime.detector), state
    try:
        for block in blocks:
            after, events = process(runtime, rule, state, block)
            yield from events
            state = after
            if events or (state.stream.steps - saved.stream.steps) * rule.clock.step >= _SECONDS:
                save(path, owner, state)
                saved = state
            if asked_to_stop():
                break
    finally:
        save(path, owner, state)


def save(path: Path, owner: Owner, state: DetectorState) -> None:
    """Write `state` to `path`, whole or not at all; raises InputError if it can't be written."""
    stream = state.stream
    document = _Document(owner=owner, unread=len(stream.samples), skip=stream.skip, steps=stream.steps)
    data = sealed(FORMAT, to_json(document), _arrays(state))
    with whole_file(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # devices lose power


def load(path: Path, owner: Owner, runtime: Runtime) -> DetectorState:
    """The state that `save` wrote to `path`.

    Raises InputError, of one line, if it is damaged, does not belong to `owner`, or can't come from a stream.
    """
    return read(path, lambda data: _parse(data, owner, runtime), "a state", MAX_FILE)


def _parse(data: bytes, owner: Owner, runtime: Runtime) -> DetectorState:
    rule = event_rule(runtime.detector)

    def layout(document: _Document) -> Layout:
        for name, value in _fields(owner).items():
            found = _fields(document.owner)[name]
            if found != value:
                raise InputError(f"expected a state with {name} {value}, found one with {found}")
        return _layout(document, runtime, rule)

    document, arrays = opened(data, FORMAT, _Document, layout, "a state", MAX_FILE)
    lstms = tuple(
        tuple(arrays[f"cells.{index}.{part}"] for part in range(len(lstm)))
        for index, lstm in enumerate(begin(runtime, rule).stream.lstm)
    )
    medians = max(document.steps - rule.around, 0)
    state = DetectorState(
        StreamState(arrays["samples"], document.skip, lstms, document.steps),
        EventState(arrays["recent"], medians, arrays["first"], arrays["last"], arrays["peak"]),
    )
    _check(state, runtime)
    return state


def _fields(owner: Owner) -> dict[str, Any]:
    """The fields of `owner`, to compare one by one; thresholds last, since they are long in an error."""
    return {"model": owner.model, "runtime": owner.runtime} | dict(reversed(vars(owner.event_config).items()))


def _arrays(state: DetectorState) -> dict[str, np.ndarray]:
    stream, events = state
    return {
        "samples": np.ascontiguousarray(stream.samples),
        **{
            f"cells.{index}.{part}": np.ascontiguousarray(array)
            for index, lstm in enumerate(stream.lstm)
            for part, array in enumerate(lstm)
        },
        "recent": np.ascontiguousarray(events.recent),
        **{name: getattr(events, name) for name in ("first", "last", "peak")},
    }


def _layout(document: _Document, runtime: Runtime, rule: EventRule) -> Layout:
    window, hop = step_samples(runtime.detector.features, runtime.detector.network)
    events, steps = len(rule.events), document.steps
    if document.unread >= window or document.skip > (0 if document.unread else hop):
        raise InputError(
            f"unread, skip: expected fewer than {window} samples to read, or up to {hop} to skip, "
            f"found {document.unread} and {document.skip}"
        )
    # The median filter keeps up to 2 · around rows; at the start, `around` of them repeat the first logits.
    recent = min(rule.around + steps, 2 * rule.around) if steps else 0
    fixed = {name: (str(array.dtype), array.shape) for name, array in _arrays(begin(runtime, rule)).items()}
    return fixed | {"samples": ("float32", (document.unread,)), "recent": ("float32", (recent, events))}


def _check(state: DetectorState, runtime: Runtime) -> None:
    """Raise InputError for values that can't come from a stream."""
    (samples, _, lstms, _), events = state
    half = 1 << (runtime.detector.network.quant.activations - 1)
    first, last, peak = events.first, events.last, events.peak
    on = first >= 0
    valid = {
        "samples": (np.abs(samples) < _LOUDEST).all(),  # False for NaN too
        "recent": np.isfinite(events.recent).all(),
        "first": first.min() >= -1 and first.max() < events.steps,
        "last": last.min() >= -2 and last.max() < events.steps and (last >= first)[on].all(),
        "peak": np.where(on, np.isfinite(peak), np.isneginf(peak)).all(),
    }
    for index, lstm in enumerate(lstms):
        for part, array in enumerate(lstm):
            largest = 1 << (CELL_BITS - 1) if part % 2 else half  # h and c take turns
            inside = array.min() >= -largest and array.max() < largest
            valid[f"cells.{index}.{part}"] = inside if array.dtype == np.int32 else np.isfinite(array).all()
    for name, good in valid.items():
        if not good:
            raise InputError(f"{name}: expected values that a stream can leave, found others")
