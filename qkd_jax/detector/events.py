"""From what a detector says at each step to events, as they end."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from qkd_jax.config import Clock, step_clock
from qkd_jax.detector import stream
from qkd_jax.detector.detector import Detector
from qkd_jax.errors import InputError

_PIECE_SECONDS = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """What was heard, from when to when, in seconds since the start, and its highest probability."""

    event: str
    onset: float
    offset: float
    peak: float


class Rule(NamedTuple):
    """A detector's `EventConfig` in logits and steps.

    An event begins at logits `begin`, goes on down to `end` (float64 [events]), and is over after `gap` steps
    without it; one of fewer than `shortest` steps is none.  Logits are medians with `around` on either side.
    """

    events: tuple[str, ...]
    clock: Clock
    begin: np.ndarray
    end: np.ndarray
    around: int
    gap: int
    shortest: int


class Spans(NamedTuple):
    """What is carried from one piece of a stream to the next.

    `recent`: the logits that medians to come are of [steps, events]; `steps`: the medians so far; and of each
    event [events]: the step when what is not yet over began, -1 without such, when it was last there, and its
    highest logit.
    """

    recent: np.ndarray
    steps: int
    first: np.ndarray
    last: np.ndarray
    peak: np.ndarray


class Heard(NamedTuple):
    """What is carried from one block of a waveform to the next: of the samples, and of what they said."""

    stream: stream.Stream
    spans: Spans


def detect(detector: Detector, blocks: Iterable[np.ndarray]) -> Iterator[Event]:
    """Events in a waveform that comes in `blocks`, each when it is over: `detect_in` NumPy."""
    return detect_in(stream.in_numpy(detector), blocks)


def detect_in(runtime: stream.Runtime, blocks: Iterable[np.ndarray]) -> Iterator[Event]:
    """Events in a waveform that comes in `blocks` (float32 [samples], full scale is 1), each when it is over.

    The `event_config` of the runtime's detector says what an event is.  However the waveform is cut into blocks,
    the events are the same, in the same order; memory is bounded, however long it is.  Raises InputError for
    blocks of another kind, and if the thresholds in use are not those of the detector's events.
    """
    rule = rule_of(runtime.detector)
    heard = begin(runtime, rule)
    for block in blocks:
        heard, events = hear(runtime, rule, heard, block)
        yield from events
    yield from finish(rule, heard.spans)


def begin(runtime: stream.Runtime, rule: Rule) -> Heard:
    """The state before the first block."""
    return Heard(stream.start(runtime), start(rule))


def hear(runtime: stream.Runtime, rule: Rule, heard: Heard, block: np.ndarray) -> tuple[Heard, list[Event]]:
    """The state after `block`, and the events that are over by then; raises what `detect_in` does."""
    if block.ndim != 1 or block.dtype != np.float32 or not np.isfinite(block).all():
        raise InputError(
            "blocks: expected finite float32 [samples] of full scale 1, "
            f"found {block.dtype} {list(block.shape)}{_odd(block)}"
        )
    (state, spans), events = heard, []
    piece = _PIECE_SECONDS * runtime.detector.features.sample_rate
    for first in range(0, len(block), piece):
        state, logits = stream.push(runtime, state, block[first : first + piece])
        spans, over = push(rule, spans, logits)
        events += over
    return Heard(state, spans), events


def rule_of(detector: Detector) -> Rule:
    """How `detector` makes events of logits; raises InputError where `detect_in` does."""
    config, clock = detector.event_config, step_clock(detector.features, detector.network)
    point = config.thresholds[config.use] if config.use else dict.fromkeys(detector.events, 0.5)
    if point.keys() != set(detector.events):
        raise InputError(
            f"event_config.thresholds.{config.use}: expected one for each of {', '.join(detector.events)}, "
            f"found {', '.join(point) or 'none'}"
        )
    thresholds = np.array([point[event] for event in detector.events])
    return Rule(
        detector.events,
        clock,
        begin=_logit(thresholds),
        end=_logit(config.end * thresholds),
        around=round(config.median_seconds / clock.step) // 2,
        gap=max(round(config.gap_seconds / clock.step), 1),
        shortest=round(config.shortest_seconds / clock.step),
    )


def start(rule: Rule) -> Spans:
    """The state before the first step."""
    events = len(rule.events)
    none = np.full(events, -1)
    return Spans(np.zeros((0, events), np.float32), 0, none, none - 1, np.full(events, -np.inf))


def push(rule: Rule, spans: Spans, logits: np.ndarray) -> tuple[Spans, list[Event]]:
    """The state after `logits` (float32 [steps, events]), and the events that are over by then.

    These are in the order in which they turn out to be over, and in the detector's where that is the same.
    """
    recent, medians = _medians(rule, spans.recent, logits)
    _, step, first, last, peak = spans
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
    return Spans(recent, step, first, last, peak), events


def finish(rule: Rule, spans: Spans) -> list[Event]:
    """The events that are over because the stream is."""
    after = np.repeat(spans.recent[-1:], rule.around, axis=0)
    (_, _, first, last, peak), events = push(rule, spans, after)
    return events + _events(rule, first >= 0, first, last, peak)


def _medians(rule: Rule, recent: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The logits that medians to come are of, and the medians that `logits` allow [steps, events].

    At either end of the stream, its first or last logits stand for those beyond.
    """
    if not len(recent):
        recent = np.repeat(logits[:1], rule.around, axis=0)
    known, window = np.concatenate([recent, logits]), 2 * rule.around + 1
    if len(known) < window:
        return known, known[:0]
    windows = np.lib.stride_tricks.sliding_window_view(known, window, axis=0)
    medians = np.partition(windows, rule.around, axis=-1)[..., rule.around]
    return known[len(medians) :], medians


def _events(
    rule: Rule, over: np.ndarray, first: np.ndarray, last: np.ndarray, peak: np.ndarray
) -> list[Event]:
    """Those of the spans that are `over` (bool [events]) and not too short."""
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


def _odd(block: np.ndarray) -> str:
    return " with NaN or infinity" if block.dtype.kind == "f" and not np.isfinite(block).all() else ""


def _logit(probability: np.ndarray) -> np.ndarray:
    return np.log(probability) - np.log1p(-probability)
