"""Intervals by resampling recordings: the weights, the weighted EER, and how often they contain the truth."""

import numpy as np
import pytest
from scipy.stats import norm

from experiments.bootstrap import average_eer, interval, resample
from qkd_jax.evaluation.metrics import evaluate

EVENTS = ("a", "b")


@pytest.fixture
def scenes():
    """Targets, logits with ties, and sources of 200 scenes; `a` and `b` come from few recordings."""
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 2)) < 0.4).astype(np.float32)
    logits = np.round(targets + rng.normal(0, 1, (200, 2)), 1)
    sources = [
        ";".join(f"{event}={rng.integers(9)}" for event, held in zip(EVENTS, row) if held) for row in targets
    ]
    return targets, logits, sources


def test_weights_of_one_give_the_average_eer_of_evaluate(scenes):
    targets, logits, _ = scenes
    expected = evaluate(targets, logits, EVENTS)["average"]["eer"]
    np.testing.assert_allclose(average_eer(targets, logits, np.ones((3, 200))), expected, rtol=1e-12)


def test_a_scene_of_weight_n_counts_as_n_scenes(scenes):
    targets, logits, sources = scenes
    weights = resample(sources, 20, 0)
    assert (weights == 0).any() and (weights > 2).any()
    expected = [
        evaluate(*(np.repeat(array, row.astype(int), axis=0) for array in (targets, logits)), EVENTS)
        for row in weights
    ]
    np.testing.assert_allclose(
        average_eer(targets, logits, weights), [row["average"]["eer"] for row in expected], rtol=1e-12
    )


def test_a_scene_is_taken_as_often_as_the_product_of_its_recordings():
    alone = ["dog=fs:1", "dog=fs:2", "dog=fs:3", "gun=fs:1", "gun=ibm:guns", "", "", ""]
    weights = resample(
        [*alone, "dog=fs:1", "dog=fs:2;dog=fs:3", "dog=fs:1;gun=fs:1", "dog=fs:1;dog=fs:1"], 500, 0
    )
    dogs, guns, others = weights[:, :3], weights[:, 3:5], weights[:, 5:8]
    for event in (dogs, guns, others):  # as many as there are, each as likely
        assert (event.sum(axis=1) == event.shape[1]).all()
        np.testing.assert_allclose(event.mean(axis=0), 1, atol=0.15)
    expected = [dogs[:, 0], dogs[:, 1] * dogs[:, 2], dogs[:, 0] * guns[:, 0], dogs[:, 0]]
    np.testing.assert_array_equal(weights[:, 8:].T, expected)
    # fs:1 of another event is another recording.
    assert abs(np.corrcoef(dogs[:, 0], guns[:, 0])[0, 1]) < 0.15


def _coverage(recordings, effect, sources, repeats=200):
    """The share of `repeats` worlds whose interval contains the true EER, and the intervals' mean width.

    A world has 100 positives of `recordings` recordings, whose scores share a normal `effect`, and
    100 negatives.
    """
    spread, rng = np.sqrt(1 + effect**2), np.random.default_rng(0)
    truth = 100 * norm.cdf(-1.5 / (1 + spread))  # where both tails are equal
    targets = np.repeat([1.0, 0.0], 100)[:, None]
    owner = np.arange(100) % recordings
    bounds = []
    for world in range(repeats):
        scores = rng.normal(0, 1, 200)
        scores[:100] += 1.5 + effect * rng.normal(0, 1, recordings)[owner]
        weights = resample([f"dog={name}" for name in sources] + [""] * 100, 200, world)
        bounds.append(interval(average_eer(targets, scores[:, None], weights)))
    low, high = np.transpose(bounds)
    return np.mean((low <= truth) & (truth <= high)), np.mean(high - low)


def test_scenes_that_share_recordings_need_the_recordings_resampled():
    by_recording, wide = _coverage(recordings=12, effect=2.0, sources=np.arange(100) % 12)
    by_scene, narrow = _coverage(recordings=12, effect=2.0, sources=range(100))
    assert by_recording > 0.85 > 0.75 > by_scene
    assert wide > 1.5 * narrow
