"""Which event, and when: the metrics of sound event detection, by sed_scores_eval (the extra `sed`).

Bilen et al. 2020 define PSDS; Ebbers et al. 2022 compute it over all thresholds instead of a grid of some.
"""

import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from qkd_jax.detector.stream import Clock
from qkd_jax.errors import InputError

Truth = Mapping[str, Sequence[tuple[str, float, float]]]
"""The spans of each clip: event, onset and offset in seconds.  A clip without events has none."""

Rocs = dict[str, tuple[np.ndarray, np.ndarray]]
"""The staircase under which `psds1` and `psds2` are the area: effective false positives an hour, rising to
`MAX_FALSE_POSITIVES`, and the effective true positive ratio in [0, 1] from there on, each [points]."""

MAX_FALSE_POSITIVES = 100.0
"""Effective false positives an hour up to which PSDS counts (e_max)."""

_PSDS: dict[str, dict[str, float | None]] = {
    "psds1": {"dtc_threshold": 0.7, "gtc_threshold": 0.7},
    "psds2": {"dtc_threshold": 0.1, "gtc_threshold": 0.1, "cttc_threshold": 0.3, "alpha_ct": 0.5},
}


def evaluate_sound_events(
    truth: Truth,
    scores: Mapping[str, np.ndarray],
    durations: Mapping[str, float],
    events: Sequence[str],
    clock: Clock,
    *,
    threshold: float = 0.5,
    median: int = 7,
    f1: bool = True,
) -> tuple[dict[str, dict[str, float]], Rocs]:
    """Percent for each event and, under the key `average`, for all; and the curves of PSDS.

    `truth`, `scores` and `durations` (seconds) are of the same clips.  Scores are [steps, events] as `clock`
    times them: probabilities, or logits with a `threshold` of 0.  They are smoothed over `median` steps.  The
    first step reaches back to the clip's beginning, the last on to its end; steps and parts of spans beyond
    that are left out.  Spans of one event that overlap or touch are one.

    - `psds1` and `psds2`, over all thresholds, as in DCASE's task 4: detections lie in spans and spans in
      detections to 0.7, or to 0.1.  In `psds2` a false positive that lies in another event to 0.3 is a
      cross-trigger, weighed by 0.5; a single event has none.  The average measures the mean of the events'
      curves less their standard deviation, so it is not the mean of the events' figures.
    - `event_f1`: onsets within 0.2 s, offsets within 0.2 s or a fifth of the span, whichever is more.
    - `segment_f1`: in segments of 1 s an event is or is not.
    - `intersection_f1`: detections lie in spans and spans in detections to 0.5, as in DESED's baseline.

    The three F1 are of scores above `threshold`, 0 where an event is never found, and averaged plainly;
    they take about as long as both PSDS, and are left out without `f1`.

    Raises InputError without sed_scores_eval; ValueError for other clips than the truth's, scores that are
    not finite or not of `events`, a span without length in its clip or of another event, an event without
    spans, and an even `median`.
    """
    library = load_sed_scores_eval()
    frames, spans = _inputs(truth, scores, durations, events, clock, median)
    seconds, rocs, values = dict(durations), {}, {}
    for name, parameters in _PSDS.items():
        if len(events) == 1:
            parameters = parameters | {"cttc_threshold": None, "alpha_ct": 0.0}
        average, of_event, (true_positives, false_positives), _ = library.intersection_based.psds(
            frames, spans, seconds, **parameters, alpha_st=1.0, max_efpr=MAX_FALSE_POSITIVES
        )
        rocs[name] = (false_positives, true_positives)
        values[name] = of_event | {"average": average}
    if f1:
        for name, (of_event, *_) in {
            "event_f1": library.collar_based.fscore(
                frames, spans, threshold, onset_collar=0.2, offset_collar=0.2, offset_collar_rate=0.2
            ),
            "segment_f1": library.segment_based.fscore(frames, spans, seconds, threshold, segment_length=1.0),
            "intersection_f1": library.intersection_based.fscore(
                frames, spans, threshold, dtc_threshold=0.5, gtc_threshold=0.5
            ),
        }.items():
            values[name] = of_event | {"average": of_event["macro_average"]}
    table = {
        row: {name: 100 * float(column[row]) for name, column in values.items()}
        for row in (*events, "average")
    }
    return table, rocs


def smooth(scores: np.ndarray, median: int) -> np.ndarray:
    """The median of `median` steps, an odd number, around each step of `scores` [steps, events].

    Beyond its ends a clip is mirrored (c b a | a b c | c b a), as in DESED's baseline.
    """
    from scipy.ndimage import median_filter

    if median < 1 or median % 2 == 0:
        raise ValueError(f"median: expected an odd number of steps, got {median}")
    return median_filter(scores, (median, 1), mode="reflect")


def load_sed_scores_eval() -> ModuleType:
    """What counts; raises InputError where the extra `sed` is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # setuptools', of its pkg_resources
            import sed_scores_eval
    except ImportError:
        raise InputError("sound events: expected sed_scores_eval: pip install -e '.[sed]'") from None
    return sed_scores_eval


def _inputs(
    truth: Truth,
    scores: Mapping[str, np.ndarray],
    durations: Mapping[str, float],
    events: Sequence[str],
    clock: Clock,
    median: int,
) -> tuple[dict[str, Any], dict[str, list[tuple[float, float, str]]]]:
    """What sed_scores_eval takes of each clip: a DataFrame of scores, and spans."""
    from sed_scores_eval.base_modules.scores import create_score_dataframe

    for name, given in (("scores", scores), ("durations", durations)):
        if odd := sorted(given.keys() ^ truth.keys()):
            raise ValueError(
                f"{name}: expected the {len(truth)} clips of the truth, got {len(given)}; "
                f"{odd[0]!r} is only in one of them"
            )
    for clip, seconds in durations.items():
        if not 0 < seconds < np.inf:
            raise ValueError(f"{clip}: expected a duration above 0 s, got {seconds:g}")
    spans = {clip: _spans(clip, truth[clip], durations[clip], events) for clip in truth}
    if absent := set(events) - {event for of_clip in spans.values() for _, _, event in of_clip}:
        raise ValueError(f"truth: expected spans of every event, got none of {', '.join(sorted(absent))}")
    frames = {}
    for clip, values in scores.items():
        finite = np.isfinite(values).all()
        if not (finite and len(values) and values.shape[1:] == (len(events),)):
            raise ValueError(
                f"{clip}: expected finite scores [steps, {len(events)}], "
                f"got {list(values.shape)}{'' if finite else ' with NaN or infinity'}"
            )
        edges = _edges(len(values), clock, durations[clip])
        smoothed = smooth(values[: len(edges) - 1], median)
        frames[clip] = create_score_dataframe(smoothed, edges, list(events))
    return frames, spans


def _spans(
    clip: str, spans: Sequence[tuple[str, float, float]], duration: float, events: Sequence[str]
) -> list[tuple[float, float, str]]:
    """Onset, offset and event: within the clip, and apart from others of the same event."""
    apart: list[tuple[float, float, str]] = []
    for event, onset, offset in sorted(spans):
        end = min(offset, duration)
        if event not in events:
            raise ValueError(f"{clip}: expected spans of {', '.join(events)}, got {event}")
        if not 0 <= onset < end:
            raise ValueError(
                f"{clip}: expected {event} with an onset, then an offset, in {duration:g} s, "
                f"got {onset:g} to {offset:g}"
            )
        if apart and apart[-1][2] == event and onset <= apart[-1][1]:
            onset, before, _ = apart.pop()
            end = max(before, end)
        apart.append((onset, end, event))
    return apart


def _edges(steps: int, clock: Clock, duration: float) -> np.ndarray:
    """Where the steps that begin in the clip do so, and its end: seconds [steps + 1], from 0."""
    begins = clock.first + clock.step * (np.arange(steps) - 0.5)
    begins[0] = 0
    return np.append(begins[begins < duration], duration)
