"""Metrics of timed events against counts by definition and by hand."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from qkd_jax.config import Clock
from qkd_jax.errors import InputError
from qkd_jax.evaluation.plots import model_styles, psd_roc_figures
from qkd_jax.evaluation.timed_events import evaluate_timed_events, smooth

TICKS = 20  # per second; all times below are whole ticks, so that counts are exact
STEP = 5  # ticks
EVENTS = ("bell", "knock", "alarm")
QUARTERS = Clock(0.125, 0.25)
"""Steps of a quarter of a second, the first at the start of the clip."""


def evaluated(truth, scores, durations, events=EVENTS, clock=QUARTERS, **options):
    pytest.importorskip("sed_scores_eval", reason="the extra sed is not installed")
    table, rocs = evaluate_timed_events(truth, scores, durations, events, clock, **options)
    return table["events"] | {"average": table["average"]}, rocs


def runs(on):
    """Start and end of each run of true."""
    return np.flatnonzero(np.diff(np.pad(on.astype(int), 1))).reshape(-1, 2)


def covered(ticks, tenths, intervals):
    """Which `intervals` are true in at least this many `tenths` of their `ticks`."""
    return np.array([10 * ticks[a:b].sum() >= tenths * (b - a) for a, b in intervals], bool)


def filled(intervals, length):
    ticks = np.zeros(length, bool)
    for a, b in intervals:
        ticks[a:b] = True
    return ticks


def f1(hits, false, annotations):
    return 200 * hits / (hits + false + annotations) if hits else 0.0


def intersections(detected, truth, event, dtc, gtc, cttc=11):
    """True and false positives, and cross-triggers with each event (Bilen et al. 2020).

    For each clip `detected` is [ticks] and `truth` [events, ticks]; a `cttc` of 11 tenths is never reached.
    """
    hits, false, cross = 0, 0, np.zeros(len(truth[0]))
    for on, true in zip(detected, truth):
        detections = runs(on)
        good = covered(true[event], dtc, detections)
        hits += covered(filled(detections[good], len(on)), gtc, runs(true[event])).sum()
        false += (~good).sum()
        cross += [covered(other, cttc, detections[~good]).sum() for other in true]
    return hits, false, np.delete(cross, event)


def direct_psds(ticks, truth, seconds, dtc, gtc, cttc, alpha_ct):
    """PSDS of each event and of all, by its definition: counted at every threshold separately.

    `ticks` are the scores of each clip, [events, ticks]; `truth` has the same form.
    """
    curves = []
    for event in range(len(truth[0])):
        others = [sum(true[other].sum() for true in truth) / TICKS for other in range(len(truth[0]))]
        points = [(0.0, 0.0)]
        count = sum(len(runs(true[event])) for true in truth)
        for threshold in np.unique(np.concatenate([clip[event] for clip in ticks])):
            detected = [clip[event] >= threshold for clip in ticks]
            hits, false, cross = intersections(detected, truth, event, dtc, gtc, cttc)
            rate = false / seconds + alpha_ct * np.mean(cross / np.delete(others, event))
            points.append((3600 * rate, hits / count))
        curves.append(points)
    edges = np.unique([rate for points in curves for rate, _ in points if rate < 100] + [100.0])
    heights = np.array([[max(y for x, y in points if x <= edge) for edge in edges[:-1]] for points in curves])
    all_events = np.maximum(heights.mean(0) - heights.std(0), 0)
    return [float(row @ np.diff(edges)) for row in (*heights, all_events)]


def direct_event_f1(detected, truth, event):
    hits = detections = annotations = 0
    for on, true in zip(detected, truth):
        ours, theirs = runs(on), runs(true[event])
        onset, offset = np.abs(ours[:, None] - theirs).transpose(2, 0, 1)
        collar = np.maximum(0.2 * TICKS, 0.2 * (theirs[:, 1] - theirs[:, 0]))
        near = (onset <= 0.2 * TICKS) & (offset <= collar + 1e-9)
        hits += near[linear_sum_assignment(near, maximize=True)].sum()
        detections, annotations = detections + len(ours), annotations + len(theirs)
    return f1(hits, detections - hits, annotations)


def direct_segment_f1(detected, truth, event):
    on = np.concatenate([clip.reshape(-1, TICKS).any(1) for clip in detected])
    true = np.concatenate([clip[event].reshape(-1, TICKS).any(1) for clip in truth])
    return f1((on & true).sum(), (on & ~true).sum(), true.sum())


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_all_figures_equal_those_of_direct_counts(seed):
    """Scores follow the truth, confuse events, and tie often; annotations overlap, touch, or exceed clips."""
    rng = np.random.default_rng(seed)
    # With d, without events, a false positive is 22 per hour.
    lengths = {"a": 60, "b": 80, "c": 100, "d": 3000}
    annotations, scores, truth, ticks = {}, {}, [], []
    for clip, length in lengths.items():
        true = np.zeros((3, length), bool)
        annotations[clip] = []
        for event in range(3) if clip != "d" else ():
            for onset in rng.integers(0, length - 10, rng.integers(1, 4)):
                offset = onset + rng.integers(1, 50)
                true[event, onset:offset] = True
                annotations[clip].append((EVENTS[event], onset / TICKS, offset / TICKS))
        there = true[:, STEP // 2 :: STEP]
        values = 2 * there + rng.integers(0, 3) * there[[1, 2, 0]] + rng.integers(0, 3, there.shape)
        if clip == "d":
            values = np.zeros_like(values)
            values[rng.integers(3), 10:14] = 2
        scores[clip] = values.T.astype(np.float32)
        truth.append(true)
        ticks.append(np.repeat(values, STEP, axis=1))
    seconds = {clip: length / TICKS for clip, length in lengths.items()}
    table, _ = evaluated(annotations, scores, seconds, threshold=1.5, median=1)

    total = sum(seconds.values())
    psds1 = direct_psds(ticks, truth, total, 7, 7, 11, 0)
    psds2 = direct_psds(ticks, truth, total, 1, 1, 3, 0.5)
    expected = {}
    for index, event in enumerate(EVENTS):
        detected = [clip[index] > 1.5 for clip in ticks]
        hits, false, _ = intersections(detected, truth, index, 5, 5)
        expected[event] = {
            "psds1": psds1[index],
            "psds2": psds2[index],
            "event_f1": direct_event_f1(detected, truth, index),
            "segment_f1": direct_segment_f1(detected, truth, index),
            "intersection_f1": f1(hits, false, sum(len(runs(true[index])) for true in truth)),
        }
    means = {key: np.mean([expected[event][key] for event in EVENTS]) for key in expected["bell"]}
    expected["average"] = means | {"psds1": psds1[-1], "psds2": psds2[-1]}
    assert table.keys() == expected.keys()
    for row, figures in expected.items():
        assert table[row] == pytest.approx(figures, abs=1e-6), row
    without, _ = evaluated(annotations, scores, seconds, threshold=1.5, median=1, f1=False)
    assert without == {row: {key: table[row][key] for key in ("psds1", "psds2")} for row in table}


def scores_of(annotations, seconds, events=EVENTS, clock=QUARTERS):
    """Scores of 0.9 within the annotations (event, onset, offset) and of 0.1 elsewhere."""
    times = clock.first + clock.step * np.arange(round(seconds / clock.step))
    scores = np.full((len(times), len(events)), 0.1, np.float32)
    for event, onset, offset in annotations:
        scores[(onset < times) & (times < offset), events.index(event)] = 0.9
    return scores


def measured(truth, scores, seconds, events=EVENTS, clock=QUARTERS, **options):
    """The table of clips of equal length."""
    durations = dict.fromkeys(truth, float(seconds))
    return evaluated(truth, scores, durations, events, clock, **{"median": 1} | options)[0]


def test_perfect_scores_give_100_percent():
    bells = [("bell", 0.0, 2.5), ("knock", 1.0, 4.0), ("bell", 3.0, 3.5)]
    truth = {"a": bells, "b": [("alarm", 0.0, 5.0)], "c": []}
    table = measured(truth, {clip: scores_of(events, 5) for clip, events in truth.items()}, 5)
    assert list(table) == [*EVENTS, "average"]
    figures = ("psds1", "psds2", "event_f1", "segment_f1", "intersection_f1")
    for row in table.values():
        assert row == pytest.approx(dict.fromkeys(figures, 100))
        assert all(type(figure) is float for figure in row.values())


@pytest.mark.parametrize(
    ("annotation", "detections", "counts"),
    [
        ((2.0, 4.0), [(2.15, 4), (1.85, 4), (2.2, 4)], True),
        ((2.0, 4.0), [(2.25, 4), (1.75, 4)], False),
        # A fifth of 2 s.
        ((2.0, 4.0), [(2, 4.4), (2, 3.6)], True),
        ((2.0, 4.0), [(2, 4.45), (2, 3.55)], False),
        # A fifth of half a second is less than 0.2 s.
        ((2.0, 2.5), [(2, 2.7)], True),
        ((2.0, 2.5), [(2, 2.75)], False),
    ],
)
def test_event_f1_allows_collars(annotation, detections, counts):
    events, clock = ("bell",), Clock(0.025, 0.05)
    for detection in detections:
        scores = {"a": scores_of([("bell", *detection)], 6, events, clock)}
        table = measured({"a": [("bell", *annotation)]}, scores, 6, events, clock)
        assert table["bell"]["event_f1"] == pytest.approx(100 * counts), detection


@pytest.mark.parametrize(
    ("psds1", "psds2", "intersection", "detections"),
    [
        (100, 100, 100, [(2, 9), (2, 16.25)]),  # 0.7 of the annotation; 0.702 of the detection
        (0, 100, 100, [(2, 8.75), (0, 7), (2, 16.5), (2, 22)]),  # half of either
        (0, 100, 0, [(0, 6.75), (0, 3), (2, 22.25), (2, 102)]),  # a tenth of either
        (0, 0, 0, [(0, 2.75), (2, 102.25)]),
    ],
)
def test_detections_and_annotations_must_cover_enough_of_each_other(psds1, psds2, intersection, detections):
    """The clip is so long that a detection of the whole clip, at the lowest threshold, is not a hit."""
    events, expected = ("bell",), {"psds1": psds1, "psds2": psds2, "intersection_f1": intersection}
    for detection in detections:
        scores = {"a": scores_of([("bell", *detection)], 120, events)}
        row = measured({"a": [("bell", 2.0, 12.0)]}, scores, 120, events)["bell"]
        assert {name: row[name] for name in expected} == pytest.approx(expected), detection


@pytest.mark.parametrize(
    ("false", "crosses"),
    [((20, 21), True), ((21.25, 23.75), True), ((21, 24.5), False)],
    ids=["inside", "0.3 of it", "0.29 of it"],
)
@pytest.mark.parametrize("empty", [0, 2])
def test_psds_by_hand(empty, false, crosses):
    """In order of score a bell, a false positive and another bell; and exact knocks, 36 s in all.

    One false positive in 72 s is 50 per hour; with as many clips without events, 25.
    """
    events = ("bell", "knock")
    knock = ("knock", 4.0, 22.0)
    truth = {"a": [("bell", 1.0, 2.0), knock], "b": [("bell", 30.0, 31.0), knock]}
    scores = {clip: scores_of(given, 36, events) for clip, given in truth.items()}
    scores["a"][round(4 * false[0]) : round(4 * false[1]), 0] = 0.8
    scores["b"][120:124, 0] = 0.7
    silence = scores_of([], 36, events)
    for index in range(empty):
        truth[f"empty {index}"], scores[f"empty {index}"] = [], silence
    rate = 3600 / (36 * (2 + empty))
    table = measured(truth, scores, 36, events)

    # Half of the bells are detected before the false positive, all of them after it.
    assert table["bell"]["psds1"] == pytest.approx(100 - rate / 2)
    assert table["knock"]["psds1"] == pytest.approx(100)
    # Before the false positive, the mean is 3/4 and the deviation 1/4.
    assert table["average"]["psds1"] == pytest.approx(100 - rate / 2)
    # A cross-trigger in 36 s of knocks is 100 per hour, no matter how long the silence is.
    crossed = min(rate + 0.5 * crosses * 3600 / 36, 100)
    assert table["bell"]["psds2"] == pytest.approx(100 - crossed / 2)

    # A bell alone has no cross-triggers.
    alone = {clip: [each for each in given if each[0] == "bell"] for clip, given in truth.items()}
    table = measured(alone, {clip: values[:, :1] for clip, values in scores.items()}, 36, events[:1])
    assert table["bell"]["psds1"] == table["bell"]["psds2"] == pytest.approx(100 - rate / 2)
    assert table["average"] == table["bell"]


def noisy_case():
    """Ten clips of 20 s, and logits that are mostly right."""
    rng = np.random.default_rng(0)
    onsets = [rng.integers(0, 15, 3).astype(float) for _ in range(10)]
    truth = {
        f"{clip}.wav": [(event, t, t + 1.5) for event, t in zip(EVENTS, times)]
        for clip, times in enumerate(onsets)
    }
    logits = {
        clip: (5 * scores_of(given, 20) - 2.5 + rng.normal(0, 1.4, (80, 3))).astype(np.float32)
        for clip, given in truth.items()
    }
    return truth, logits


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_smoothing_takes_the_median_of_each_step_and_its_neighbours(seed, steps, half):
    scores = np.random.default_rng(seed).normal(size=(steps, 2)).astype(np.float32)
    expected = np.empty_like(scores)
    mirrored = np.concatenate([scores, scores[::-1]])
    for step in range(steps):
        for event in range(2):
            window = [mirrored[index % (2 * steps), event] for index in range(step - half, step + half + 1)]
            expected[step, event] = sorted(window)[half]
    np.testing.assert_array_equal(smooth(scores, 2 * half + 1), expected)


def test_scores_are_smoothed_within_each_clip():
    truth, logits = noisy_case()
    smoothed = {clip: smooth(values, 7) for clip, values in logits.items()}
    expected = measured(truth, smoothed, 20, threshold=0.0)
    table, _ = evaluated(truth, logits, dict.fromkeys(truth, 20.0), threshold=0.0)  # 7 by default
    assert table == expected
    assert measured(truth, logits, 20, threshold=0.0) != expected


def test_the_first_and_last_steps_extend_to_the_edges_of_the_clip():
    """Steps cover 0.3 to 3.3 s; the clip and the bell last 4 s, whose edges the collars would miss."""
    scores = {"a": np.full((12, 1), 0.9, np.float32)}
    # If the bell ends with the last step, the detection is 0.7 s too long.
    for end, expected in ((4.0, 100), (3.3, 0)):
        table = measured({"a": [("bell", 0.0, end)]}, scores, 4, ("bell",), Clock(0.425, 0.25))
        assert table["bell"]["event_f1"] == expected


@pytest.mark.parametrize(("first", "onset"), [(0.125, 2.0), (0.125 + 0.5, 2.5), (0.0, 1.875)])
def test_the_clock_determines_the_times_of_steps(first, onset):
    """Step 8 begins at `first` + 7.5 / 4 s: onsets within 0.2 s are hits."""
    scores = np.full((24, 1), 0.1, np.float32)
    scores[8:12] = 0.9
    for shift, counts in ((0.0, 100), (0.19, 100), (-0.19, 100), (0.21, 0), (-0.21, 0)):
        truth = {"a": [("bell", onset + shift, onset + 1)]}
        table = measured(truth, {"a": scores}, 6, ("bell",), Clock(first, 0.25))
        assert table["bell"]["event_f1"] == counts


def test_parts_beyond_the_clip_are_ignored_and_overlapping_annotations_joined():
    """Steps of padding are ignored also by the median."""
    truth, logits = noisy_case()
    expected = measured(truth, logits, 20, median=7, threshold=0.0)
    beyond = np.full((9, 3), 99, np.float32)
    padded = {clip: np.concatenate([values, beyond]) for clip, values in logits.items()}
    assert measured(truth, padded, 20, median=7, threshold=0.0) == expected

    whole = {clip: [*given, ("bell", 17.5, 20.0)] for clip, given in truth.items()}
    joined = [("bell", 17.5, 19.0), ("bell", 19.0, 19.5), ("bell", 18.0, 20.25)]
    parts = {clip: [joined[0], *given, *joined[1:]] for clip, given in truth.items()}
    expected = measured(whole, logits, 20, threshold=0.0)
    assert measured(parts, logits, 20, threshold=0.0) == expected


def test_psds_is_the_area_under_the_step_curves_drawn():
    truth, logits = noisy_case()
    rocs, averages = {}, {}
    for name, values in {"good": logits, "bad": {clip: -x for clip, x in logits.items()}}.items():
        table, rocs[name] = evaluated(truth, values, dict.fromkeys(truth, 20.0), threshold=0.0, median=1)
        averages[name] = table["average"]
    assert averages["good"] != averages["bad"]
    styles = model_styles(["good", "bad"])
    for scenario, figure in zip(("psds1", "psds2"), psd_roc_figures(rocs, styles)):
        (axis,) = figure.axes
        assert axis.get_xlim() == axis.get_ylim() == (0, 100)
        for name, line in zip(("good", "bad"), axis.lines):
            x, y = line.get_xdata(), line.get_ydata()
            assert line.get_drawstyle() == "steps-post"
            assert line.get_color() == styles[name]["color"]
            assert np.diff(x) @ y[:-1] / 100 == pytest.approx(averages[name][scenario])


ZEROS = np.zeros((8, 1))


def one(event, onset, offset):
    return {"truth": {"a": [(event, onset, offset)], "b": []}}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"scores": {}}, "scores: expected the 2 clips of the truth, got 0; 'a' is only in one"),
        ({"durations": {"a": 2.0, "b": 2.0, "c": 2.0}}, "durations: expected the 2 .* got 3; 'c' is only"),
        ({"durations": {"a": 2.0, "b": 0.0}}, "b: expected a duration above 0 s, got 0"),
        ({"durations": {"a": 2.0, "b": float("nan")}}, "b: expected a duration above 0 s, got nan"),
        (one("bell", 1.0, 1.0), "a: expected bell with an onset.* got 1 to 1"),
        (one("bell", 1.5, 1.0), "a: expected bell with an onset.* got 1.5 to 1"),
        (one("bell", 2.0, 2.5), "in 2 s, got 2 to 2.5"),
        (one("bell", -0.5, 2.5), "got -0.5 to 2.5"),
        (one("bell", float("nan"), 1.0), "got nan to 1"),
        (one("knock", 1.0, 2.0), "a: expected annotations of bell, got knock"),
        ({"truth": {"a": [], "b": []}}, "truth: expected annotations of every event, got none of bell"),
        ({"scores": {"a": np.zeros((8, 2)), "b": ZEROS}}, r"a: .* \[steps, 1\], got \[8, 2\]"),
        ({"scores": {"a": np.zeros(8), "b": ZEROS}}, r"a: .* \[steps, 1\], got \[8\]"),
        ({"scores": {"a": ZEROS, "b": np.zeros((0, 1))}}, r"b: .* \[steps, 1\], got \[0, 1\]"),
        ({"scores": {"a": ZEROS, "b": np.full((8, 1), np.nan)}}, "b: .* with NaN or infinity"),
        *(({"median": n}, f"median: expected an odd number of steps, got {n}") for n in (4, -1)),
    ],
)
def test_inconsistent_arguments_are_refused(change, error):
    scores = {"a": ZEROS, "b": ZEROS}
    given = one("bell", 0.5, 1.0) | {"scores": scores, "durations": {"a": 2.0, "b": 2.0}}
    evaluated(**given, events=("bell",))
    with pytest.raises(ValueError, match=error):
        evaluated(**given | change, events=("bell",))


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sed_scores_eval", None)
    with pytest.raises(InputError, match=r"expected sed_scores_eval: pip install 'qkd_jax\[sed\]'"):
        evaluate_timed_events({}, {}, {}, EVENTS, QUARTERS)


def test_segment_f1_by_hand():
    """Detected in seconds 1 to 3, there in 2 to 4: two hits, a false alarm, a miss.  Never detected: 0."""
    truth, events = {"a": [("bell", 2.0, 4.5), ("knock", 0.0, 1.0)], "b": []}, ("bell", "knock")
    scores = {"a": scores_of([("bell", 1.75, 4)], 6, events), "b": scores_of([], 6, events)}
    table = measured(truth, scores, 6, events)
    assert table["bell"]["segment_f1"] == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 1))
    assert table["knock"]["segment_f1"] == 0
    assert table["average"]["segment_f1"] == pytest.approx(100 / 3)


def test_an_event_may_have_a_name_that_the_library_uses():
    truth, scores = noisy_case()
    table = measured(truth, scores, 20)
    names = dict(zip(EVENTS, ("onset", "macro_average", "average")))
    truth = {clip: [(names[event], *times) for event, *times in of_clip] for clip, of_clip in truth.items()}
    pytest.importorskip("sed_scores_eval", reason="the extra sed is not installed")
    seconds = dict.fromkeys(truth, 20.0)
    other, _ = evaluate_timed_events(truth, scores, seconds, tuple(names.values()), QUARTERS, median=1)
    assert other["average"] == table.pop("average")
    assert other["events"] == {names[event]: figures for event, figures in table.items()}


def test_psds_depends_on_the_order_of_scores_alone():
    truth, logits = noisy_case()
    expected = measured(truth, logits, 20, threshold=0.0)
    assert 0 < expected["average"]["psds1"] < expected["average"]["psds2"] < 100
    for other in (lambda x: 3 * x - 7, lambda x: x**3, np.exp):
        table = measured(truth, {clip: other(values.astype(float)) for clip, values in logits.items()}, 20)
        for row, figures in expected.items():
            for psds in ("psds1", "psds2"):
                assert table[row][psds] == pytest.approx(figures[psds], abs=1e-9)


def test_logits_with_threshold_0_equal_probabilities_with_threshold_half():
    truth, logits = noisy_case()
    probabilities = {clip: 1 / (1 + np.exp(-values.astype(float))) for clip, values in logits.items()}
    expected = measured(truth, logits, 20, threshold=0.0)
    table = measured(truth, probabilities, 20)
    for row, figures in expected.items():
        assert table[row] == pytest.approx(figures, abs=1e-9)
    assert measured(truth, probabilities, 20, threshold=0.9) != table
