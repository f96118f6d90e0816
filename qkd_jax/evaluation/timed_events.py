"""Metrics of timed events: PSDS and F1, by sed_scores_eval (the extra `sed`).

Bilen et al. 2020 define PSDS; Ebbers et al. 2022 compute it over all thresholds instead of a few.
"""

import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from qkd_jax.config import Clock, EventRecipe, RunConfig, StepNetwork, step_clock
from qkd_jax.data.dataset import Dataset
from qkd_jax.errors import InputError
from qkd_jax.evaluation.metrics import evaluate

Truth = Mapping[str, Sequence[tuple[str, float, float]]]
"""The annotations of each clip: event, onset and offset in seconds."""

Rocs = dict[str, tuple[np.ndarray, np.ndarray]]
"""The step curves whose areas are `psds1` and `psds2`: effective false positives per hour, up to
`MAX_FALSE_POSITIVES`, and the effective true positive ratio in [0, 1] from each on, both [points]."""

MAX_FALSE_POSITIVES = 100.0
"""Effective false positives per hour up to which PSDS integrates (e_max)."""

_PSDS: dict[str, dict[str, float | None]] = {
    "psds1": {"dtc_threshold": 0.7, "gtc_threshold": 0.7},
    "psds2": {"dtc_threshold": 0.1, "gtc_threshold": 0.1, "cttc_threshold": 0.3, "alpha_ct": 0.5},
}


def timed_metrics(
    config: RunConfig,
    network: StepNetwork,
    data: Dataset,
    clip: np.ndarray,
    steps: Sequence[np.ndarray],
    *,
    f1: bool = True,
) -> tuple[dict[str, dict[str, Any]], Rocs]:
    """The figures of `evaluate` and `evaluate_timed_events` in the form of both, and the curves of PSDS.

    `clip` [clips, events] and `steps`, [steps, events] for each clip, are logits.
    """
    assert isinstance(config.recipe, EventRecipe)
    timed, rocs = evaluate_timed_events(
        dict(zip(data.names, data.annotations)),
        dict(zip(data.names, steps)),
        dict(zip(data.names, data.seconds)),
        data.events,
        step_clock(config.features, network),
        threshold=0.0,
        median=config.recipe.median,
        f1=f1,
    )
    table = evaluate(data.targets, clip, data.events, single=False)
    events = {event: figures | timed["events"][event] for event, figures in table["events"].items()}
    return {"average": table["average"] | timed["average"], "events": events}, rocs


def evaluate_timed_events(
    truth: Truth,
    scores: Mapping[str, np.ndarray],
    durations: Mapping[str, float],
    events: Sequence[str],
    clock: Clock,
    *,
    threshold: float = 0.5,
    median: int = 7,
    f1: bool = True,
) -> tuple[dict[str, dict[str, Any]], Rocs]:
    """Percent for each event, by name, under `events`, and for all under `average`; and the curves of PSDS.

    `truth`, `scores` and `durations` (seconds) belong to the same clips.  Scores are [steps, events], with
    times by `clock`: probabilities, or logits with a `threshold` of 0.  They are smoothed over `median`
    steps.  The first step extends to the start of the clip, the last to its end; steps and parts of
    annotations beyond the clip are ignored.  Annotations of one event that overlap or touch are joined.

    - `psds1` and `psds2`, over all thresholds, as in DCASE's task 4: detections overlap annotations, and
      annotations detections, by at least 0.7, or 0.1.  In `psds2` a false positive that overlaps another
      event by at least 0.3 is a cross-trigger, weighted by 0.5; with a single event there is none.  The
      average is the area under the mean of the events' curves minus their standard deviation, so it is not
      the mean of the events' figures.
    - `event_f1`: onsets within 0.2 s; offsets within 0.2 s or a fifth of the event's length, if that is more.
    - `segment_f1`: the presence of an event in segments of 1 s.
    - `intersection_f1`: overlaps of at least 0.5, as in DESED's baseline.

    The three F1 count scores above `threshold`, are 0 for an event that is never detected, and are averaged
    over events; they take about as long as both PSDS, and are left out without `f1`.

    Raises InputError without sed_scores_eval; ValueError for clips other than the truth's, scores that are
    not finite or not of `events`, an annotation outside its clip or of another event, an event without
    annotations, and an even `median`.
    """
    library = load_sed_scores_eval()
    frames, annotations = _inputs(truth, scores, durations, events, clock, median)
    seconds, rocs = dict(durations), {}
    averages, by_code = dict[str, float](), dict[str, Mapping[str, float]]()
    for name, parameters in _PSDS.items():
        if len(events) == 1:
            parameters = parameters | {"cttc_threshold": None, "alpha_ct": 0.0}
        averages[name], by_code[name], (true_positives, false_positives), _ = library.intersection_based.psds(
            frames, annotations, seconds, **parameters, alpha_st=1.0, max_efpr=MAX_FALSE_POSITIVES
        )
        rocs[name] = (false_positives, true_positives)
    if f1:
        for name, (of_event, *_) in {
            "event_f1": library.collar_based.fscore(
                frames, annotations, threshold, onset_collar=0.2, offset_collar=0.2, offset_collar_rate=0.2
            ),
            "segment_f1": library.segment_based.fscore(
                frames, annotations, seconds, threshold, segment_length=1.0
            ),
            "intersection_f1": library.intersection_based.fscore(
                frames, annotations, threshold, dtc_threshold=0.5, gtc_threshold=0.5
            ),
        }.items():
            averages[name], by_code[name] = of_event["macro_average"], of_event
    table = {
        event: {name: 100 * float(of_code[code]) for name, of_code in by_code.items()}
        for event, code in _codes(events).items()
    }
    return {"average": {name: 100 * float(value) for name, value in averages.items()}, "events": table}, rocs


def _codes(events: Sequence[str]) -> dict[str, str]:
    """Names of the events for the library, which has columns `onset` and a row `macro_average` of its own."""
    return {event: f"{index:06}" for index, event in enumerate(events)}


def smooth(scores: np.ndarray, median: int) -> np.ndarray:
    """The median of `median` steps, an odd number, around each step of `scores` [steps, events].

    Beyond its ends a clip is mirrored (c b a | a b c | c b a), as in DESED's baseline.
    """
    from scipy.ndimage import median_filter

    if median < 1 or median % 2 == 0:
        raise ValueError(f"median: expected an odd number of steps, got {median}")
    return median_filter(scores, (median, 1), mode="reflect")


def load_sed_scores_eval() -> ModuleType:
    """The library of these metrics; raises InputError if the extra `sed` is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning of setuptools about pkg_resources
            import sed_scores_eval
    except ImportError:
        raise InputError("timed events: expected sed_scores_eval: pip install 'qkd_jax[sed]'") from None
    return sed_scores_eval


def _inputs(
    truth: Truth,
    scores: Mapping[str, np.ndarray],
    durations: Mapping[str, float],
    events: Sequence[str],
    clock: Clock,
    median: int,
) -> tuple[dict[str, Any], dict[str, list[tuple[float, float, str]]]]:
    """The inputs of sed_scores_eval for each clip: a DataFrame of scores, and annotations."""
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
    annotations = {clip: _joined(clip, truth[clip], durations[clip], events) for clip in truth}
    if absent := set(events) - {event for of_clip in annotations.values() for _, _, event in of_clip}:
        raise ValueError(
            f"truth: expected annotations of every event, got none of {', '.join(sorted(absent))}"
        )
    frames, codes = {}, _codes(events)
    for clip, values in scores.items():
        finite = np.isfinite(values).all()
        if not (finite and len(values) and values.shape[1:] == (len(events),)):
            raise ValueError(
                f"{clip}: expected finite scores [steps, {len(events)}], "
                f"got {list(values.shape)}{'' if finite else ' with NaN or infinity'}"
            )
        edges = _edges(len(values), clock, durations[clip])
        smoothed = smooth(values[: len(edges) - 1], median)
        frames[clip] = create_score_dataframe(smoothed, edges, list(codes.values()))
    coded = {
        clip: [(onset, offset, codes[event]) for onset, offset, event in of_clip]
        for clip, of_clip in annotations.items()
    }
    return frames, coded


def _joined(
    clip: str, annotations: Sequence[tuple[str, float, float]], duration: float, events: Sequence[str]
) -> list[tuple[float, float, str]]:
    """Onset, offset and event, cut to the clip; those of one event that overlap or touch are joined."""
    apart: list[tuple[float, float, str]] = []
    for event, onset, offset in sorted(annotations):
        end = min(offset, duration)
        if event not in events:
            raise ValueError(f"{clip}: expected annotations of {', '.join(events)}, got {event}")
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
    """Starts of the steps that begin within the clip, from 0, and its end: seconds [steps + 1]."""
    begins = clock.first + clock.step * (np.arange(steps) - 0.5)
    begins[0] = 0
    return np.append(begins[begins < duration], duration)
