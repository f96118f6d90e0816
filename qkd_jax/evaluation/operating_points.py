"""Thresholds chosen by their errors on labelled recordings."""

import math
from collections.abc import Sequence

import numpy as np

from qkd_jax.evaluation.metrics import eer_threshold

FALSE_ALARMS = (60, 10, 1)
"""False alarms per hour for which there are operating points."""


def operating_points(
    targets: np.ndarray, peaks: np.ndarray, events: Sequence[str], hours: float
) -> dict[str, dict[str, float]]:
    """For each operating point, the threshold of each event as a probability.

    `targets` is 0 or 1, [clips, events], with both values for each event; `peaks` is the largest logit of
    each event in each clip, float [clips, events]; `hours` is the duration of all clips together.  `eer` is
    at the equal error rate, and `f1` at the largest F1.  `N/h` allows at most N false alarms per hour of
    clips without the event, if they are long enough to allow at least one.
    """
    points: dict[str, dict[str, float]] = {}
    for column, event in enumerate(events):
        target, peak = targets[:, column], peaks[:, column].astype(float)
        negatives = np.sort(peak[target == 0])[::-1]
        thresholds = {"eer": eer_threshold(target, peak), "f1": _best_f1(target, peak)}
        for rate in FALSE_ALARMS:
            allowed = math.floor(rate * hours * len(negatives) / len(peak))
            if allowed >= len(negatives):
                thresholds[f"{rate}/h"] = _below(peak, negatives[-1])
            elif allowed:
                thresholds[f"{rate}/h"] = _above(peak, negatives[allowed])
        for point, logit in thresholds.items():
            points.setdefault(point, {})[event] = _probability(logit)
    return {point: per_event for point, per_event in points.items() if len(per_event) == len(events)}


def _best_f1(target: np.ndarray, peak: np.ndarray) -> float:
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(target, peak)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return _below(peak, thresholds[f1[:-1].argmax()])


def _below(peak: np.ndarray, value: float) -> float:
    """Halfway from `value` down to the next lower peak, so that rounding can't move a peak across."""
    return (value + max(peak[peak < value], default=value - 1)) / 2


def _above(peak: np.ndarray, value: float) -> float:
    """Halfway from `value` up to the next higher peak."""
    return (value + min(peak[peak > value], default=value + 1)) / 2


def _probability(logit: float) -> float:
    # σ by tanh, which does not overflow; within the open interval that EventConfig accepts.
    return min(max((1 + math.tanh(logit / 2)) / 2, 1e-6), 1 - 1e-6)
