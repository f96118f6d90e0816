"""Thresholds by what they lead to on recordings whose labels are known."""

import math
from collections.abc import Sequence

import numpy as np

from qkd_jax.evaluation.metrics import eer_threshold

FALSE_ALARMS = (60, 10, 1)
"""An hour, for which there are operating points."""


def operating_points(
    targets: np.ndarray, peaks: np.ndarray, events: Sequence[str], hours: float
) -> dict[str, dict[str, float]]:
    """For each operating point the probability from which each event is one.

    `targets` [clips, events] of 0 and 1, both for each event; `peaks`: the largest logit of each event in
    each clip, float [clips, events]; `hours` that all clips together last.  `eer`: at the equal error rate;
    `f1`: at the largest F1; `N/h`: at most N clips without the event are taken for each hour of such,
    where they last long enough for one to be allowed.
    """
    points: dict[str, dict[str, float]] = {}
    for column, event in enumerate(events):
        target, peak = targets[:, column], peaks[:, column].astype(float)
        negatives = np.sort(peak[target == 0])[::-1]
        found = {"eer": eer_threshold(target, peak), "f1": _best_f1(target, peak)}
        for rate in FALSE_ALARMS:
            allowed = math.floor(rate * hours * len(negatives) / len(peak))
            if allowed >= len(negatives):
                found[f"{rate}/h"] = _below(peak, negatives[-1])
            elif allowed:
                found[f"{rate}/h"] = _above(peak, negatives[allowed])
        for point, logit in found.items():
            points.setdefault(point, {})[event] = _probability(logit)
    return {point: chosen for point, chosen in points.items() if len(chosen) == len(events)}


def _best_f1(target: np.ndarray, peak: np.ndarray) -> float:
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(target, peak)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return _below(peak, thresholds[f1[:-1].argmax()])


def _below(peak: np.ndarray, value: float) -> float:
    """Half-way from `value` down to the next of `peak`, so that no rounding moves one across."""
    return (value + max(peak[peak < value], default=value - 1)) / 2


def _above(peak: np.ndarray, value: float) -> float:
    """Half-way from `value` up to the next of `peak`."""
    return (value + min(peak[peak > value], default=value + 1)) / 2


def _probability(logit: float) -> float:
    return min(max((1 + math.tanh(logit / 2)) / 2, 1e-6), 1 - 1e-6)
