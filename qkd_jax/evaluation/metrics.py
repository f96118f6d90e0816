"""AUC and EER of clip-level scores (section 4.1 of Shi et al. 2019)."""

from collections.abc import Sequence

import numpy as np


def eer(targets: np.ndarray, scores: np.ndarray) -> float:
    """Equal error rate in [0, 1]: where false negatives and false positives are equally frequent.

    `targets` are 0 or 1, `scores` any order-preserving numbers, both [clips].  Between two
    points of the DET curve the crossing is interpolated.
    """
    return _equal_errors(targets, scores)[0]


def eer_threshold(targets: np.ndarray, scores: np.ndarray) -> float:
    """The score at the equal error rate (see `eer`), interpolated like it between two clips' scores."""
    return _equal_errors(targets, scores)[1]


def _equal_errors(targets: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    from sklearn.metrics import roc_curve

    false_positive, true_positive, thresholds = roc_curve(targets, scores, drop_intermediate=False)
    thresholds[0] = thresholds[1]  # the first is infinite, for no clip to be an event
    gap = (1 - true_positive) - false_positive  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    rate, threshold = (
        float(values[after - 1] + share * (values[after] - values[after - 1]))
        for values in (false_positive, thresholds)
    )
    return rate, threshold


def average_precision(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each event in [0, 1], float64 [events]; the rest as in `eer`, [clips, events]."""
    from sklearn.metrics import average_precision_score

    return np.array([average_precision_score(truth, score) for truth, score in zip(targets.T, scores.T)])


def evaluate(targets: np.ndarray, scores: np.ndarray, events: Sequence[str]) -> dict[str, dict[str, float]]:
    """`auc` and `eer` in percent for each event and their plain mean, under the key `average`.

    `targets` and `scores` are [clips, events].  Raises ValueError if an event has no positive
    or no negative clip, for then neither figure exists.
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
    return table | {"average": mean}
