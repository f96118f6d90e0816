"""From logits at each step to events, each reported as soon as it is over."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from qkd_jax.audio.reading import check_scale
from qkd_jax.config import Clock, step_clock
from qkd_jax.detector import stream
from qkd_jax.detector.detector import Detector
from qkd_jax.errors import InputError

_PIECE_SECONDS = 1
_MAX_MEDIAN = 10_000  # steps
_LEAST = np.finfo(np.float64).tiny
_MEDIANS_AT_ONCE = 1 << 22  # logits, 16 MB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """A detected event: its class, onset and offset in seconds since the start, and highest probability."""

    event: str
    onset: float
    offset: float
    peak: float


class EventRule(NamedTuple):
    """A detector's `EventConfig` in logits and steps.

    An event begins where a logit reaches `begin`, continues while it is at least `end` (both float64
    [events]), and is over after `gap` steps below.  Events of fewer than `shortest` steps are dropped.
    Logits are first median-filtered over `around` steps on either side.
    """

    events: tuple[str, ...]
    clock: Clock
    begin: np.ndarray
    end: np.ndarray
    around: int
    gap: int
    shortest: int


class EventState(NamedTuple):
    """The state between two pieces of a stream of logits.

    `recent`: the logits that later medians need [steps, events]; `steps`: the number of medians so far; and
    for each class [events]: the first step of the event that isn't over yet, -1 without one, the last step
    of an event, and the open event's highest logit.
    """

    recent: np.ndarray
    steps: int
    first: np.ndarray
    last: np.ndarray
    peak: np.ndarray


class DetectorState(NamedTuple):
    """The state between two blocks of a waveform: of the stream of samples, and of the events."""

    stream: stream.StreamState
    events: EventState


def detect(detector: Detector, blocks: Iterable[np.ndarray]) -> Iterator[Event]:
    """Events in a waveform that comes in `blocks`, computed by NumPy; see `detect_in`."""
    return detect_in(stream.in_numpy(detector), blocks)


def detect_in(runtime: stream.Runtime, blocks: Iterable[np.ndarray]) -> Iterator[Event]:
    """Events in a waveform that comes in `blocks` (float32 [samples], full scale 1), each when it is over.

    The `event_config` of the runtime's detector defines an event.  However the waveform is cut into blocks,
    the events and their order are the same; memory is bounded, however long it is.  Raises InputError for
    other blocks, and if the thresholds in use are not those of the detector's events.
    """
    rule = event_rule(runtime.detector)
    state = begin(runtime, rule)
    for block in blocks:
        state, events = process(runtime, rule, state, block)
        yield from events
    yield from finish(rule, state.events)


def begin(runtime: stream.Runtime, rule: EventRule) -> DetectorState:
    """The state before the first block."""
    return DetectorState(stream.start(runtime), start(rule))


def process(
    runtime: stream.Runtime, rule: EventRule, state: DetectorState, block: np.ndarray
) -> tuple[DetectorState, list[Event]]:
    """The state after `block`, and the events that are over by then; raises InputError as `detect_in`."""
    if block.ndim != 1 or block.dtype != np.float32:
        raise InputError(
            f"blocks: expected float32 [samples] of full scale 1, found {block.dtype} {list(block.shape)}"
        )
    check_scale(block, "blocks")
    (samples, open_events), events = state, []
    # Pieces of a second: a long block would need memory for all of its frames at once.
    piece = _PIECE_SECONDS * runtime.detector.features.sample_rate
    for first in range(0, len(block), piece):
        samples, logits = stream.push(runtime, samples, block[first : first + piece])
        open_events, over = push(rule, open_events, logits)
        events += over
    return DetectorState(samples, open_events), events


def event_rule(detector: Detector) -> EventRule:
    """The rule by which logits of `detector` become events; raises InputError as `detect_in`."""
    config, clock = detector.event_config, step_clock(detector.features, detector.network)
    point = config.thresholds[config.use] if config.use else dict.fromkeys(detector.events, 0.5)
    if point.keys() != set(detector.events):
        raise InputError(
            f"event_config.thresholds.{config.use}: expected one for each of {', '.join(detector.events)}, "
            f"found {', '.join(point) or 'none'}"
        )
    if config.median_seconds > (most := _MAX_MEDIAN * clock.step):
        raise InputError(
            f"--events.median-seconds: expected at most {most:g} ({_MAX_MEDIAN} of the detector's steps), "
            f"got {config.median_seconds:g}"
        )
    thresholds = np.array([point[event] for event in detector.events])
    return EventRule(
        detector.events,
        clock,
        begin=_logit(thresholds),
        end=_logit(np.maximum(config.end * thresholds, _LEAST)),
        around=round(config.median_seconds / clock.step) // 2,
        gap=max(round(config.gap_seconds / clock.step), 1),
        shortest=round(config.shortest_seconds / clock.step),
    )


def start(rule: EventRule) -> EventState:
    """The state before the first step."""
    events = len(rule.events)
    none = np.full(events, -1)
    # `last` is -2: at step 0 nothing continues from step -1.
    return EventState(np.zeros((0, events), np.float32), 0, none, none - 1, np.full(events, -np.inf))


def push(rule: EventRule, state: EventState, logits: np.ndarray) -> tuple[EventState, list[Event]]:
    """The state after `logits` (float32 [steps, events]), and the events that are over by then.

    Events come in the order in which they are known to be over, and at the same step in the detector's.
    """
    recent, medians = _medians(rule, state.recent, logits)
    _, step, first, last, peak = state
    events = []
    for row in medians:
        on = row >= np.where(last == step - 1, rule.end, rule.begin)
        first = np.where(on & (first < 0), step, first)
        last = np.where(on, step, last)
        peak = np.where(on, np.maximum(peak, row), peak)
        over = (first >= 0) & (step - last >= rule.gap)
        step += 1
        if over.any():
            events += _events(rule, over, first, last, peak)
            first, peak = np.where(over, -1, first), np.where(over, -np.inf, peak)
    return EventState(recent, step, first, last, peak), events


def finish(rule: EventRule, state: EventState) -> list[Event]:
    """The events that are over because the stream ends."""
    after = np.repeat(state.recent[-1:], rule.around, axis=0)
    (_, _, first, last, peak), events = push(rule, state, after)
    return events + _events(rule, first >= 0, first, last, peak)


def _medians(rule: EventRule, recent: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The buffer for later medians, and the medians that `logits` complete [steps, events].

    Beyond either end of the stream, its first or last logits are repeated.
    """
    if not len(recent):
        recent = np.repeat(logits[:1], rule.around, axis=0)
    known, window = np.concatenate([recent, logits]), 2 * rule.around + 1
    if len(known) < window:
        return known, known[:0]
    windows = np.lib.stride_tricks.sliding_window_view(known, window, axis=0)
    medians, rows = np.empty(windows.shape[:-1], known.dtype), max(_MEDIANS_AT_ONCE // windows[0].size, 1)
    for first in range(0, len(windows), rows):  # since np.partition copies the windows
        piece = windows[first : first + rows]
        medians[first : first + rows] = np.partition(piece, rule.around, axis=-1)[..., rule.around]
    return known[len(medians) :], medians


def _events(
    rule: EventRule, over: np.ndarray, first: np.ndarray, last: np.ndarray, peak: np.ndarray
) -> list[Event]:
    """The open events that are `over` (bool [events]) and not too short."""
    start, step = rule.clock.first - rule.clock.step / 2, rule.clock.step
    return [
        Event(
            event=rule.events[index],
            onset=start + int(first[index]) * step,
            offset=start + int(last[index] + 1) * step,
            peak=(1 + math.tanh(peak[index] / 2)) / 2,  # the sigmoid, without overflow
        )
        for index in np.flatnonzero(over & (last - first + 1 >= rule.shortest))
    ]


def _logit(probability: np.ndarray) -> np.ndarray:
    return np.log(probability) - np.log1p(-probability)
