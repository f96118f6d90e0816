"""Logits of clips and of their steps against windows cut by hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.config import LSTMConfig
from qkd_jax.data.dataset import Dataset
from qkd_jax.errors import InputError
from qkd_jax.evaluation import prediction
from qkd_jax.evaluation.prediction import clip_logits, make_predict, make_predict_steps, step_logits
from qkd_jax.models.build import build_model
from qkd_jax.models.common import Logits

FRAMES = 4
LENGTHS = [4, 9, 8, 5, 4, 13]


def data_set():
    """Clips of one to four windows; all values are negative, so that padding would give the maximum."""
    rng, count = np.random.default_rng(0), len(LENGTHS)
    features = [rng.uniform(-9, -1, (length, 2)).astype(np.float32) for length in LENGTHS]
    names = [str(index) for index in range(count)]
    return Dataset(names, features, np.zeros((count, 2)), ("x", "y"), np.ones(count, np.int8))


def predict(variables, batch):
    """The mean over time, shifted: a row of zeros gets a far higher logit than every clip."""
    return jnp.asarray(batch.mean(axis=1) + variables)


def recording(inputs):
    """`predict`, which records its batches."""

    def recorded(variables, batch):
        inputs.append(batch)
        return predict(variables, batch)

    return recorded


@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_the_logit_of_a_clip_is_the_maximum_over_its_windows(batch_size):
    data = data_set()
    # Windows by hand; the last one ends with the clip.
    starts = [[0], [0, 4, 5], [0, 4], [0, 1], [0], [0, 4, 8, 9]]
    expected = [
        np.max([features[start : start + FRAMES].mean(axis=0) for start in at], axis=0) + 100
        for at, features in zip(starts, data.features)
    ]
    logits = clip_logits(predict, 100.0, data, FRAMES, batch_size)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-6)


def test_every_batch_has_one_shape_so_that_predict_compiles_once():
    inputs = []
    clip_logits(recording(inputs), 0.0, data_set(), FRAMES, 5)
    assert [batch.shape for batch in inputs] == [(5, FRAMES, 2)] * 3  # 13 windows


def test_predict_is_the_model_in_evaluation():
    model = build_model(LSTMConfig(hidden_size=4), 2)
    features = jax.random.normal(jax.random.key(0), (4, FRAMES, 2))
    variables = jax.jit(model.init)(jax.random.key(1), features)
    expected = jax.jit(model.apply)(variables, features)
    steps = jax.jit(partial(model.apply, method="step_logits"))(variables, features).steps
    features = np.asarray(features)
    predict, predict_steps = make_predict(model), make_predict_steps(model)
    for rows in (3, 4):  # on two devices
        np.testing.assert_allclose(predict(variables, features[:rows]), expected[:rows], atol=1e-6)
        logits = predict_steps(variables, features[:rows])
        np.testing.assert_allclose(logits.clip, expected[:rows], atol=1e-6)
        np.testing.assert_allclose(logits.steps, steps[:rows], atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(("convolutions", "time_strides"), [((), 0), ((4,), 0), ((4,), 1)])
def test_the_steps_of_all_windows_are_those_of_the_whole_clip(convolutions, time_strides, batch_size):
    """Each step is the mean of its frames; windows of 5 frames have 5, 3 or 2 steps."""
    network, frames, data = LSTMConfig(convolutions=convolutions, time_strides=time_strides), 5, data_set()

    def means(features):
        """The steps of features [batch, frames, mels]."""
        starts = network.stride * np.arange(network.steps(features.shape[1]))
        pieces = (features[:, at : at + network.receptive_field] for at in starts)
        return np.stack([piece.mean(axis=1) for piece in pieces], axis=1)

    def predict_steps(variables, batch):
        assert batch.shape == (batch_size, frames, 2)
        return Logits(means(batch).max(axis=1), means(batch), None)

    clips, steps = step_logits(predict_steps, None, data, frames, network, batch_size)
    assert clips.dtype == np.float32 and len(steps) == len(data.names)
    for features, of_clip, of_steps in zip(data.features, clips, steps):
        expected = means(np.resize(features, (max(len(features), frames), 2))[None])[0]
        np.testing.assert_allclose(of_steps, expected, rtol=1e-6)
        np.testing.assert_allclose(of_clip, expected.max(axis=0), rtol=1e-6)


def test_each_of_several_processes_reads_its_own_rows(monkeypatch):
    def batches():
        inputs = []
        clip_logits(recording(inputs), 100.0, data_set(), FRAMES, 4)
        return np.array(inputs)

    whole = batches()
    monkeypatch.setattr(prediction, "own_rows", lambda size: slice(size // 2, size))
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
    np.save(tmp_path / "damaged.npy", np.full((5, 2), np.inf, np.float32))
    damaged = np.load(tmp_path / "damaged.npy", mmap_mode="r")
    data = dataclasses.replace(data_set(), features=[*data_set().features[:5], damaged])
    with pytest.raises(InputError, match=rf"{tmp_path}/damaged\.npy: expected finite log-mel energies"):
        clip_logits(predict, 0.0, data, FRAMES, 4)
