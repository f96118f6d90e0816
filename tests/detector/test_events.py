"""Events equal those of a plain loop over the whole recording, each reported once, in bounded memory."""

import dataclasses
import math
import statistics
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.config import EventConfig, FeatureConfig, step_clock
from qkd_jax.detector import stream
from qkd_jax.detector.events import detect, event_rule, finish, push, start
from qkd_jax.errors import InputError
from tests.detectors import FRONT, PLAIN, random_detector
from tests.streams import steps_of

DETECTOR = random_detector(PLAIN)
STEP = 0.01
FIRST = 0.0125


def with_config(detector=DETECTOR, **fields):
    return dataclasses.replace(detector, event_config=EventConfig(**fields))


def logits_of(probabilities):
    """Logits with these probabilities for the first event, and very low ones for the others."""
    column = np.log(probabilities) - np.log1p(-np.array(probabilities))
    return np.stack([column, *[np.full(len(column), -9.0)] * 2], axis=1).astype(np.float32)


def sound(samples):
    """Noise whose loudness changes every 200 samples."""
    rng = np.random.default_rng(0)
    loudness = rng.uniform(0, 0.5, samples // 200 + 1).repeat(200)[:samples]
    return (rng.normal(0, 1, samples) * loudness).astype(np.float32)


def logits_in(detector, samples):
    return steps_of(stream.in_numpy(detector), samples)


def medians(detector, samples):
    """Thresholds that half of the posteriors of `samples` exceed."""
    logits = logits_in(detector, samples)
    return {event: 1 / (1 + math.exp(-np.median(column))) for event, column in zip(detector.events, logits.T)}


def events_of(detector, logits, cuts=()):
    rule = event_rule(detector)
    state, events = start(rule), []
    for piece in np.split(logits, sorted(cuts)):
        state, over = push(rule, state, piece)
        events += over
    return events + finish(rule, state)


def steps(events):
    """First and last step of each event."""
    first = FIRST - STEP / 2
    return [(round((e.onset - first) / STEP), round((e.offset - first) / STEP) - 1) for e in events]


def offline(detector, logits):
    """The same events by plain loops over the whole recording, in probabilities and seconds."""
    config, events = detector.event_config, []
    for index, name in enumerate(detector.events):
        column, reach = logits[:, index].tolist(), round(config.median_seconds / STEP) // 2
        padded = column[:1] * reach + column + column[-1:] * reach
        pieces = (padded[i : i + 2 * reach + 1] for i in range(len(column)))
        p = [1 / (1 + math.exp(-statistics.median(piece))) for piece in pieces]
        threshold = config.thresholds[config.use][name] if config.use else 0.5
        runs, on = [], False
        for step, value in enumerate(p):
            went_on, on = on, value >= (threshold * config.end if on else threshold)
            if on and went_on:
                runs[-1][1] = step
            elif on:
                runs.append([step, step])
        joined = runs[:1]
        for run in runs[1:]:
            if STEP * (run[0] - joined[-1][1] - 1) < config.gap_seconds - 1e-9:
                joined[-1][1] = run[1]
            else:
                joined.append(run)
        for begin, end in joined:
            if STEP * (end - begin + 1) > config.shortest_seconds - 1e-9:
                events.append((name, begin, end, round(max(p[begin : end + 1]), 9)))
    return events


def durations(longest):
    """Durations of whole steps; the configuration rounds others to these."""
    return st.integers(0, longest).map(lambda count: count * STEP)


CONFIGS = st.builds(
    EventConfig,
    thresholds=st.just({}) | st.just({"eer": dict(zip(DETECTOR.events, (0.5, 0.3, 0.6180339887)))}),
    end=st.sampled_from([1.0, 0.7, 0.5, 0.1]),
    median_seconds=durations(7),
    gap_seconds=durations(6),
    shortest_seconds=durations(4),
)


@settings(deadline=None, max_examples=200)
@given(CONFIGS, st.integers(0, 90), st.integers(0, 1000), st.lists(st.integers(0, 90), max_size=9))
def test_events_equal_those_of_a_plain_loop_however_the_logits_are_cut(config, length, seed, cuts):
    config = dataclasses.replace(config, use="eer" if config.thresholds else None)
    detector = dataclasses.replace(DETECTOR, event_config=config)
    # A random walk on few values: it stays, returns, and meets a threshold of 0.5 exactly.
    walk = np.cumsum(np.random.default_rng(seed).integers(-2, 3, (length, 3)), axis=0)
    logits = (np.abs((walk + 12) % 24 - 12) / 2 - 3).astype(np.float32)
    events = events_of(detector, logits, cuts)
    assert events == events_of(detector, logits)
    rows = sorted((event.event, *times, round(event.peak, 9)) for event, times in zip(events, steps(events)))
    assert rows == sorted(offline(detector, logits))


def test_onset_and_offset_are_where_steps_meet():
    """A step covers the time around its centre, up to half-way to its neighbours."""
    detector = with_config(random_detector(FRONT))
    first, step = step_clock(detector.features, detector.network)
    (event,) = events_of(detector, logits_of([0.1, 0.9, 0.8, 0.1]))
    assert (event.onset, event.offset) == pytest.approx((first + step / 2, first + 2.5 * step))
    assert event.event == detector.events[0]


def test_an_event_is_reported_once_and_as_soon_as_it_is_over():
    logits = logits_of([0.1, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9])
    for fields, when in [({}, 3), ({"gap_seconds": 0.03}, 5), ({"median_seconds": 0.03}, 4)]:
        rule = event_rule(with_config(**fields))
        state, over = start(rule), []
        for step, row in enumerate(logits):
            state, events = push(rule, state, row[None])
            over += [(step, *times) for times in steps(events)]
        assert over == [(when, 1, 2)]
        assert steps(finish(rule, state)) == [(7, 7)]


def test_events_are_reported_in_the_order_in_which_they_end():
    logits = np.full((9, 3), -9, np.float32)
    logits[1:8, 0] = logits[2:4, 1] = logits[3:4, 2] = logits[6:, 1] = 3
    names = [DETECTOR.events.index(event.event) for event in events_of(with_config(), logits, [5])]
    assert names == [1, 2, 0, 1]


@pytest.mark.parametrize("detector", [DETECTOR, random_detector(FRONT)], ids=["plain", "front"])
def test_events_in_a_waveform_are_the_same_however_it_is_cut(detector):
    samples = sound(40_000)
    fields = {"thresholds": {"median": medians(detector, samples)}, "use": "median", "end": 1.0}
    times = {"median_seconds": 0.05, "gap_seconds": 0.02, "shortest_seconds": 0.03, "history_seconds": 1.0}
    detector = with_config(detector, **fields, **times)
    whole = list(detect(detector, [samples]))
    logits = logits_in(detector, samples)
    assert whole == events_of(detector, logits)
    first, step = step_clock(detector.features, detector.network)
    assert len(whole) > 3 and max(event.offset for event in whole) > first + step * (len(logits) - 1)

    @settings(deadline=None, max_examples=5)
    @given(cuts=st.lists(st.integers(0, 40_000), max_size=8))
    def check(cuts):
        assert list(detect(detector, np.split(samples, sorted(cuts)))) == whole

    check()
    assert list(detect(detector, [])) == list(detect(detector, [samples[:10]])) == []


def test_memory_grows_neither_with_the_stream_nor_with_an_event():
    low = FeatureConfig(sample_rate=400, win_length=128, hop_length=100, n_fft=128, n_mels=32, fmax=200.0)
    detector, block = dataclasses.replace(DETECTOR, features=low), sound(400)
    # The first event never ends, the others come and go.
    thresholds = medians(detector, np.tile(block, 60)) | {detector.events[0]: 1e-9}
    detector = with_config(detector, thresholds={"x": thresholds}, use="x", end=1.0, median_seconds=2.0)

    def peak(seconds):
        tracemalloc.start()
        try:
            count = sum(1 for _ in detect(detector, (block.copy() for _ in range(seconds))))
            return tracemalloc.get_traced_memory()[1], count
        finally:
            tracemalloc.stop()

    peak(30)
    (short, few), (long, many) = peak(30), peak(300)
    assert 3 < few < many / 5
    # The samples alone would take 432,000 bytes more; garbage awaiting collection varies.
    assert long < short + 100_000


def test_thresholds_of_other_events_are_named():
    detector = with_config(thresholds={"eer": {"dog": 0.5, "cat": 0.2}}, use="eer")
    message = r"thresholds\.eer: expected one for each of dog, baby_cry, gunshot, found dog, cat"
    with pytest.raises(InputError, match=message):
        list(detect(detector, []))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (np.zeros(100, np.int16), r"found int16 \[100\]$"),
        (np.zeros((100, 2), np.float32), r"found float32 \[100, 2\]$"),
        (np.float32([0, -12_345, 10]), "blocks: expected samples within ±1 .full scale., found 12345"),
        (np.float32([0, np.nan]), "blocks: expected finite samples, found NaN or infinity"),
    ],
)
def test_blocks_that_are_no_waveform_are_refused(block, message):
    with pytest.raises(InputError, match=message):
        list(detect(DETECTOR, [np.zeros(500, np.float32), block]))


def test_an_event_continues_exactly_while_it_is_above_its_end():
    logits = logits_of([0.1, 0.79, 0.81, 0.5, 0.41, 0.39, 0.41, 0.7, 0.81, 0.39])
    thresholds = {"f1": dict.fromkeys(DETECTOR.events, 0.8)}
    events = events_of(with_config(thresholds=thresholds, use="f1"), logits)
    assert steps(events) == [(2, 4), (8, 8)]
    assert [event.peak for event in events] == pytest.approx([0.81, 0.81], abs=1e-6)
    assert steps(events_of(with_config(thresholds=thresholds, use="f1", end=1.0), logits)) == [
        (2, 2),
        (8, 8),
    ]
    assert steps(events_of(with_config(thresholds=thresholds), logits)) == [(1, 9)]
    assert steps(events_of(with_config(thresholds=thresholds, use="f1", end=0.1), logits)) == [(2, 9)]


def test_short_events_are_dropped_after_gaps_are_closed():
    logits = logits_of([0.9, 0.1, 0.1, 0.9, 0.9, 0.1, 0.1, 0.1, 0.9, 0.1])
    assert steps(events_of(with_config(), logits)) == [(0, 0), (3, 4), (8, 8)]
    assert steps(events_of(with_config(shortest_seconds=0.02), logits)) == [(3, 4)]
    assert steps(events_of(with_config(gap_seconds=0.03), logits)) == [(0, 4), (8, 8)]
    assert steps(events_of(with_config(gap_seconds=0.04), logits)) == [(0, 8)]
    assert steps(events_of(with_config(gap_seconds=0.03, shortest_seconds=0.03), logits)) == [(0, 4)]
