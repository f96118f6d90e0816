from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.evaluation.metrics import confusion, eer, eer_threshold, evaluate


def crossing(targets, scores):
    """EER in exact fractions: where the DET polygon meets the line of equal errors; and the threshold there.

    No score is higher than the highest, so up to the first point of the polygon the threshold is that.
    """
    positives = [score for target, score in zip(targets, scores) if target]
    negatives = [score for target, score in zip(targets, scores) if not target]
    thresholds = [max(scores) + 1, *sorted(set(scores), reverse=True)]  # an event where score >= threshold
    points = [
        (
            Fraction(sum(score >= threshold for score in negatives), len(negatives)),
            Fraction(sum(score < threshold for score in positives), len(positives)),
        )
        for threshold in thresholds
    ]
    heights = [Fraction(score) for score in (thresholds[1], *thresholds[1:])]
    for ((x, y), height), ((next_x, next_y), next_height) in pairwise(zip(points, heights)):
        if next_x >= next_y:
            # x + t (next_x - x) = y + t (next_y - y)
            t = (y - x) / ((next_x - x) - (next_y - y))
            return x + t * (next_x - x), height + t * (next_height - height)
    raise AssertionError("the last point, where everything is an event, has no misses")


def pairwise_auc(targets, scores):
    """The share of pairs of a positive and a negative clip in the right order, ties half."""
    pairs = [
        (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
        for i in np.flatnonzero(targets)
        for j in np.flatnonzero(1 - np.asarray(targets))
    ]
    return np.mean(pairs)


@st.composite
def scored_clips(draw):
    """Targets with both classes, and scores on a coarse grid so that there are ties."""
    clips = draw(st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=0, max_size=20))
    targets, scores = zip((1, draw(st.integers(-4, 4))), (0, draw(st.integers(-4, 4))), *clips)
    return np.array(targets), np.array(scores, np.float32)


@given(scored_clips())
@settings(max_examples=150, deadline=None)
def test_eer_and_auc_are_those_of_a_direct_count(clips):
    targets, scores = clips
    row = evaluate(targets[:, None], scores[:, None], ["bell"])["events"]["bell"]
    rate, threshold = crossing(targets.tolist(), scores.tolist())
    assert row["eer"] == pytest.approx(100 * float(rate), abs=1e-9)
    assert eer_threshold(targets, scores) == pytest.approx(float(threshold), abs=1e-9)
    assert row["auc"] == pytest.approx(100 * pairwise_auc(targets, scores), abs=1e-9)


@given(scored_clips(), st.floats(0.1, 9), st.floats(-9, 9))
@settings(max_examples=50, deadline=None)
def test_the_threshold_moves_with_the_scores(clips, factor, shift):
    targets, scores = clips
    expected = factor * eer_threshold(targets, scores) + shift
    assert eer_threshold(targets, factor * scores.astype(float) + shift) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("targets", "scores", "expected"),
    [
        ([0, 0, 1, 1], [1, 2, 3, 4], 0),
        ([0, 0, 1, 1], [4, 3, 2, 1], 1),
        ([0, 0, 1, 1], [5, 5, 5, 5], 0.5),
        # One miss and one false alarm in three: a point of the curve lies on the line.
        ([1, 1, 0, 1, 0, 0], [6, 5, 4, 3, 2, 1], 1 / 3),
        # From (0, 1/2) to (1/3, 1/2) to (1/3, 0): the line is met on the way down.
        ([1, 0, 1, 0, 0], [5, 4, 3, 2, 1], 1 / 3),
        # From (0, 1/2) to (1/2, 0) in one step, for two clips tie: met halfway.
        ([1, 0, 1, 0], [4, 3, 3, 2], 1 / 4),
        # From (0, 1) to (2/3, 0): met at 2/5.
        ([0, 0, 1, 0], [2, 2, 2, 1], 2 / 5),
    ],
    ids=["perfect", "reversed", "all tied", "on a point", "on an edge", "halfway", "in between"],
)
def test_eer_by_hand(targets, scores, expected):
    assert eer(np.array(targets), np.array(scores)) == pytest.approx(expected, abs=1e-12)


def test_a_table_of_events_and_their_plain_mean():
    targets = np.array([[0, 0], [0, 1], [0, 1], [1, 1]])
    scores = np.array([[0.1, 0.4], [0.2, 0.3], [0.3, 0.2], [0.4, 0.1]])
    # The events have different frequencies, so that a mean weighted by clips would differ.
    assert evaluate(targets, scores, ("bell", "knock")) == {
        "average": {"auc": 50, "eer": 50},
        "events": {"bell": {"auc": 100, "eer": 0}, "knock": {"auc": 0, "eer": 100}},
    }
    # An event may have the name of any other key.
    named = evaluate(targets, scores, ("average", "events"))["events"]
    assert named == {"average": {"auc": 100, "eer": 0}, "events": {"auc": 0, "eer": 100}}


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_where_each_clip_has_one_event_predictions_are_counted_too(count, seed):
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(count), rng.integers(0, count, 20)])
    targets, scores = np.eye(count)[truth], rng.normal(size=(len(truth), count))
    table = evaluate(targets, scores, [f"{index}" for index in range(count)])
    guesses = [max(range(count), key=row.__getitem__) for row in scores.tolist()]
    assert table["average"]["accuracy"] == pytest.approx(100 * np.mean(np.array(guesses) == truth))
    for index, row in enumerate(table["events"].values()):
        hits = sum(guess == real == index for guess, real in zip(guesses, truth))
        wrong = sum((guess == index) != (real == index) for guess, real in zip(guesses, truth))
        assert row["f1"] == pytest.approx(100 * 2 * hits / (2 * hits + wrong))
        # Average precision: at each positive clip, the share of positives among those not below it.
        of_event = scores[:, index]
        shares = [
            np.mean(truth[of_event >= of_event[clip]] == index) for clip in np.flatnonzero(truth == index)
        ]
        assert row["map"] == pytest.approx(100 * np.mean(shares))
    for key in ("map", "f1", "auc"):
        mean = np.mean([row[key] for row in table["events"].values()])
        assert table["average"][key] == pytest.approx(mean)
    counts = confusion(targets, scores)
    assert counts.tolist() == [
        [sum(pair == (real, guess) for pair in zip(truth, guesses)) for guess in range(count)]
        for real in range(count)
    ]


@pytest.mark.parametrize("value", [0, 1])
def test_an_event_of_one_class_is_an_error(value):
    targets = np.array([[0, value], [1, value]])
    with pytest.raises(ValueError, match=f"event 'knock': .* got {2 * value} positive of 2"):
        evaluate(targets, np.zeros((2, 2)), ("bell", "knock"))
