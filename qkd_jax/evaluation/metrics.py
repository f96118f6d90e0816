"""AUC and EER of clips (section 4.1 of Shi et al. 2019), and accuracy where each clip has one event."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TITLES = {
    "accuracy": "accuracy",
    "map": "mAP",
    "f1": "macro F1",
    "auc": "AUC",
    "eer": "EER",
    "psds": "PSDS",
    "psds1": "PSDS1",
    "psds2": "PSDS2",
    "event_f1": "event F1",
    "segment_f1": "segment F1",
    "intersection_f1": "intersection F1",
}
"""Titles of averages over events."""


def best_by(figures: Mapping[str, float]) -> float:
    """The figure on validation by which the best epoch is chosen: PSDS, or else AUC.

    >>> best_by({"auc": 90.0, "eer": 18.0})
    90.0
    """
    return figures["psds"] if "psds" in figures else figures["auc"]


def kept_epoch(epochs: Sequence[Mapping[str, Any]], final: bool = False) -> int:
    """The index of the epoch whose state is kept: the best on validation, the later of equals.

    With `final`, it is the last.

    >>> kept_epoch([{"valid": {"auc": 90.0}}, {"valid": {"auc": 90.0}}, {"valid": {"auc": 80.0}}])
    1
    """
    if final:
        return len(epochs) - 1
    return max(range(len(epochs)), key=lambda index: (best_by(epochs[index]["valid"]), index))


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


def single_label(targets: np.ndarray) -> bool:
    """Whether each clip of `targets` [clips, events] has exactly one of several events.

    >>> single_label(np.array([[0, 1], [1, 0]])), single_label(np.array([[0, 1], [0, 0]]))
    (True, False)
    """
    return targets.shape[1] > 1 and bool((targets.sum(axis=1) == 1).all())


def confusion(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Clips by event (rows) and by predicted event (columns), int [events, events], for single-label tasks.

    The prediction is the event with the highest score; `targets` and `scores` are [clips, events].

    >>> confusion(np.array([[1, 0], [0, 1]]), np.array([[2.0, 1.0], [3.0, 0.0]])).tolist()
    [[1, 0], [1, 0]]
    """
    from sklearn.metrics import confusion_matrix

    labels = np.arange(targets.shape[1])
    counts: np.ndarray = confusion_matrix(targets.argmax(axis=1), scores.argmax(axis=1), labels=labels)
    return counts


def evaluate(
    targets: np.ndarray, scores: np.ndarray, events: Sequence[str], *, single: bool | None = None
) -> dict[str, dict[str, Any]]:
    """`auc` and `eer` in percent: for each event, by name, under `events`, and their mean under `average`.

    `targets` and `scores` are [clips, events].  If the task is `single` label, by default if the targets are
    `single_label`, also `map` (average precision) and `f1` of each event and their means, and under `average`
    the `accuracy`.  Raises ValueError if an event has no positive or no negative clip, because then AUC and
    EER are not defined.

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
    average = {}
    if single_label(targets) if single is None else single:
        counts = confusion(targets, scores)
        right = counts.diagonal()
        f1 = 2 * right / (counts.sum(axis=0) + counts.sum(axis=1))
        for event, *values in zip(events, average_precision(targets, scores), f1):
            table[event] |= {key: 100 * float(value) for key, value in zip(("map", "f1"), values)}
        average["accuracy"] = 100 * float(right.sum() / counts.sum())
    average |= {key: float(np.mean([row[key] for row in table.values()])) for key in table[events[0]]}
    return {"average": average, "events": table}
