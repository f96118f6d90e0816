"""AUC and EER of clips (section 4.1 of Shi et al. 2019)."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def eer(targets: np.ndarray, scores: np.ndarray) -> float:
    """Equal error rate in [0, 1]: the error at which false negative and false positive rate are equal.

    `targets` are 0 or 1; `scores` are logits, probabilities, or anything that orders the clips; both are
    [clips].  The crossing is interpolated between two points of the DET curve.

    >>> eer(np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9]))
    0.5
    """
    return _equal_errors(targets, scores)[0]


def eer_threshold(targets: np.ndarray, scores: np.ndarray) -> float:
    """The threshold at the equal error rate, interpolated like `eer`.

    >>> eer_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]))
    0.8
    """
    return _equal_errors(targets, scores)[1]


def _equal_errors(targets: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    from sklearn.metrics import roc_curve

    false_positive, true_positive, thresholds = roc_curve(targets, scores, drop_intermediate=False)
    thresholds[0] = thresholds[1]  # roc_curve starts at infinity, where no clip is positive
    gap = (1 - true_positive) - false_positive  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    rate, threshold = (
        float(values[after - 1] + share * (values[after] - values[after - 1]))
        for values in (false_positive, thresholds)
    )
    return rate, threshold


def average_precision(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each event in [0, 1], float64 [events]; the arguments are [clips, events]."""
    from sklearn.metrics import average_precision_score

    return np.array([average_precision_score(truth, score) for truth, score in zip(targets.T, scores.T)])


def evaluate(targets: np.ndarray, scores: np.ndarray, events: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`auc` and `eer` in percent: for each event, by name, under `events`, and their mean under `average`.

    `targets` and `scores` are [clips, events].  Raises ValueError if an event has no positive or no negative
    clip, because then neither metric is defined.

    >>> evaluate(np.array([[0], [1]]), np.array([[-2.0], [3.0]]), ["bell"])["events"]
    {'bell': {'auc': 100.0, 'eer': 0.0}}
    """
    from sklearn.metrics import roc_auc_score

    table = {}
    for index, event in enumerate(events):
        truth, score = targets[:, index], scores[:, index]
        if len(np.unique(truth)) < 2:
            raise ValueError(
                f"event {event!r}: expected positive and negative clips, "
                f"got {int(truth.sum())} positive of {len(truth)}"
            )
        table[event] = {"auc": 100 * float(roc_auc_score(truth, score)), "eer": 100 * eer(truth, score)}
    mean = {key: float(np.mean([row[key] for row in table.values()])) for key in ("auc", "eer")}
    return {"average": mean, "events": table}
