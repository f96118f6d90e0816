"""Thresholds and their errors, counted by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.evaluation.operating_points import operating_points


def logit(probability):
    return np.log(probability / (1 - probability))


def test_each_point_by_hand():
    # 10 clips in an hour: 4 with the event, 6 without, which last 0.6 of it.
    peaks = np.array([5.0, 4, 3, -1, 4.5, 2, 1, 0, -2, -3])[:, None]
    targets = np.array([1.0, 1, 1, 1, 0, 0, 0, 0, 0, 0])[:, None]

    def logits(hours):
        points = operating_points(targets, peaks, ["dog"], hours)
        return {point: float(logit(per_event["dog"])) for point, per_event in points.items()}

    # F1 is best with 3 of 4 hits and 1 of 6 false alarms, between 2 and 3; 1/h would allow 0.6 of a clip.
    eer = logits(1.0)["eer"]
    assert logits(1.0) == pytest.approx({"eer": eer, "f1": 2.5, "60/h": -3.5, "10/h": -3.5})
    assert 1 < eer <= 3
    # All 6 clips without the event are one per hour in their 6 hours.
    assert logits(10.0)["1/h"] == pytest.approx(-3.5)
    assert logits(2.0)["1/h"] == pytest.approx((2 + 3) / 2)  # one in 1.2 hours: that at 4.5


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 200))
def test_false_alarms_keep_to_their_budget_and_with_a_lower_threshold_do_not(seed, hours):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, (60, 2)).astype(np.float32)
    targets[:2] = [[0, 1], [1, 0]]
    peaks = np.round(rng.normal(0, 2, (60, 2)) + targets, 1)  # with ties
    points = operating_points(targets, peaks, ["a", "b"], hours)
    for rate in (60, 10, 1):
        for column, event in enumerate(["a", "b"]):
            negative = peaks[targets[:, column] == 0, column]
            allowed = rate * hours * len(negative) / 60
            if f"{rate}/h" not in points:
                assert any(rate * hours * (targets[:, k] == 0).sum() / 60 < 1 for k in (0, 1))
                continue
            threshold = logit(points[f"{rate}/h"][event])
            assert (negative >= threshold).sum() <= allowed
            below = peaks[peaks[:, column] < threshold, column]
            if len(below):
                assert (negative >= below.max()).sum() > allowed or below.max() not in negative


def test_a_point_that_not_every_event_has_is_left_out():
    targets = np.zeros((20, 2), np.float32)
    targets[:10, 0], targets[:19, 1] = 1, 1
    points = operating_points(targets, np.random.default_rng(0).normal(size=(20, 2)), ["a", "b"], 2.0)
    assert "1/h" not in points  # a tenth of an hour is without b
    assert points and all(set(thresholds) == {"a", "b"} for thresholds in points.values())
