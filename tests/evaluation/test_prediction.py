import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.config import LSTMConfig
from qkd_jax.data.dataset import Dataset
from qkd_jax.errors import InputError
from qkd_jax.evaluation import prediction as scores
from qkd_jax.evaluation.prediction import clip_logits, make_predict
from qkd_jax.models.build import build_model

FRAMES = 4
LENGTHS = [4, 9, 8, 5, 4, 13]


def data_set():
    """Clips of one to four windows; all values negative, so that filling of zeros would win a maximum."""
    rng = np.random.default_rng(0)
    features = [rng.uniform(-9, -1, (length, 2)).astype(np.float32) for length in LENGTHS]
    return Dataset([str(i) for i in range(len(LENGTHS))], features, np.zeros((len(LENGTHS), 2)), ("x", "y"))


def predict(variables, batch):
    """The mean over time, shifted: a filling row of zeros scores far above every clip."""
    return jnp.asarray(batch.mean(axis=1) + variables)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_a_clips_logit_is_the_maximum_over_its_windows(batch_size):
    data = data_set()
    # Windows by hand; the last one ends where the clip ends.
    starts = [[0], [0, 4, 5], [0, 4], [0, 1], [0], [0, 4, 8, 9]]
    expected = [
        max_over([features[start : start + FRAMES].mean(axis=0) for start in at]) + 100
        for at, features in zip(starts, data.features)
    ]
    logits = clip_logits(predict, 100.0, data, FRAMES, batch_size)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-6)


def max_over(windows):
    return np.stack(windows).max(axis=0)


def test_every_batch_has_one_shape_so_that_predict_compiles_once():
    shapes = []

    def watched(variables, batch):
        shapes.append(batch.shape)
        return predict(variables, batch)

    clip_logits(watched, 0.0, data_set(), FRAMES, 5)
    assert shapes == [(5, FRAMES, 2)] * 3  # 13 windows


def test_predict_is_the_model_in_evaluation():
    model = build_model(LSTMConfig(hidden_size=4), 2)
    features = jax.random.normal(jax.random.key(0), (3, FRAMES, 2))
    variables = jax.jit(model.init)(jax.random.key(1), features)
    np.testing.assert_allclose(
        make_predict(model)(variables, np.asarray(features)), model.apply(variables, features), atol=1e-6
    )


def test_of_several_processes_each_reads_its_own_rows(monkeypatch):
    def batches():
        seen = []

        def watched(variables, batch):
            seen.append(batch)
            return predict(variables, batch)

        clip_logits(watched, 100.0, data_set(), FRAMES, 4)
        return np.array(seen)

    whole = batches()
    monkeypatch.setattr(scores, "own_rows", lambda size: slice(size // 2, size))
    second = batches()
    assert whole.all(axis=(1, 2, 3)).tolist() == [True, True, True, False]  # 13 windows
    np.testing.assert_array_equal(second[:, 2:], whole[:, 2:])
    assert not second[:, :2].any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_named(value):
    def diverged(variables, batch):
        return predict(variables, batch) + np.where(np.arange(len(batch)) == 1, value, 0)[:, None]

    with pytest.raises(InputError, match=r"1: expected finite logits, .* the model has diverged"):
        clip_logits(diverged, 0.0, data_set(), FRAMES, 50)


def test_features_that_are_not_finite_are_named(tmp_path):
    np.save(tmp_path / "spoilt.npy", np.full((5, 2), np.inf, np.float32))
    spoilt = np.load(tmp_path / "spoilt.npy", mmap_mode="r")
    data = dataclasses.replace(data_set(), features=[*data_set().features[:5], spoilt])
    with pytest.raises(InputError, match=rf"{tmp_path}/spoilt\.npy: expected finite log-mel energies"):
        clip_logits(predict, 0.0, data, FRAMES, 4)
