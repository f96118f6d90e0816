"""What DenseNet and ResNet share: batch-norm, normalization, and the type of the convolutions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.config import DenseNetConfig, ResNetConfig
from qkd_jax.models.common import with_norm
from tests.networks import jitted, shaken
from tests.trees import assert_equal

pytestmark = pytest.mark.usefixtures("compiled_quickly")

CONFIGS = [
    DenseNetConfig(blocks=(1, 1), growth=4, stem=4, bottleneck=2),
    ResNetConfig(blocks=(2, 1, 1), stem=4, bottleneck=2),
]
FEATURES = 2 * jax.random.normal(jax.random.key(0), (4, 41, 19)) - 5
pytestmark = pytest.mark.parametrize("config", CONFIGS, ids=["densenet", "resnet"])


@functools.cache
def tiny(config):
    """Variables of a tiny network, and its apply."""
    init, apply = jitted(config)
    return shaken(init(jax.random.key(1), FEATURES)), apply


def test_training_moves_the_statistics_and_evaluation_does_not(config):
    variables, apply = tiny(config)
    before = variables["batch_stats"]
    _, after = apply(variables, FEATURES, train=True)
    _, untouched = apply(variables, FEATURES)
    assert_equal(untouched, before)
    assert all((after[name][key] != before[name][key]).all() for name in before for key in ("mean", "var"))

    # The first batch-norm follows the stem, a 7x7 convolution with stride 2: 0.9 of the old, 0.1 of the new.
    norm = variables["norm"]["normalize"]
    features = (FEATURES - norm["mean"][None, None]) / norm["std"][None, None]
    kernel, layout = variables["params"]["Conv_0"]["kernel"], ("NHWC", "HWIO", "NHWC")
    image = features[..., None]
    stem = jax.lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=layout)
    old, new = before["BatchNorm_0"], after["BatchNorm_0"]
    for key, batch in {"mean": stem.mean((0, 1, 2)), "var": stem.var((0, 1, 2))}.items():
        np.testing.assert_allclose(new[key], 0.9 * old[key] + 0.1 * batch, rtol=1e-4)


def test_evaluation_uses_running_statistics_and_training_those_of_the_batch(config):
    variables, apply = tiny(config)
    doubled = {**variables, "batch_stats": jax.tree.map(lambda x: 2 * x, variables["batch_stats"])}
    (train, _), (train_doubled, _) = (apply(v, FEATURES, train=True) for v in (variables, doubled))
    (evaluated, _), (evaluated_doubled, _) = (apply(v, FEATURES) for v in (variables, doubled))
    np.testing.assert_array_equal(train, train_doubled)
    assert np.abs(evaluated - evaluated_doubled).max() > 1e-3
    assert np.abs(train - evaluated).max() > 1e-2


def test_batch_mates_do_not_matter_in_evaluation(config):
    variables, apply = tiny(config)
    together, _ = apply(variables, FEATURES)
    alone, _ = apply(variables, FEATURES[2:3])
    among_others, _ = apply(variables, FEATURES.at[:2].set(1e3))
    for other in (alone[0], among_others[2]):
        np.testing.assert_allclose(other, together[2], atol=1e-5)


def test_features_are_normalized_by_the_mean_and_std_of_the_model(config):
    variables, apply = tiny(config)
    mean, std = jnp.linspace(-6, -4, 19), jnp.linspace(1, 3, 19)
    # A new model has mean 0 and std 1, which leave features unchanged.
    new = variables | {"norm": jitted(config)[0](jax.random.key(1), FEATURES)["norm"]}
    logits, _ = apply(with_norm(variables, mean, std), FEATURES)
    by_hand, _ = apply(new, (FEATURES - mean[None, None]) / std[None, None])
    np.testing.assert_allclose(logits, by_hand, atol=1e-5)
    assert np.abs(logits - apply(new, FEATURES)[0]).max() > 1e-2


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_is_close_to_float32(config, train):
    variables, apply = tiny(config)
    init, apply_bfloat16 = jitted(dataclasses.replace(config, compute_dtype="bfloat16"))
    features = (FEATURES + 5) / 2
    logits, _ = apply(variables, features, train=train)
    coarse, stats = apply_bfloat16(variables, features, train=train)
    # Parameters, statistics and logits stay float32.
    made = jax.eval_shape(init, jax.random.key(1), FEATURES)
    assert {leaf.dtype for leaf in jax.tree.leaves([made, stats, coarse])} == {jnp.dtype("float32")}
    # Eight bits per value, some ten layers; and not 0, or it was not computed in bfloat16.
    assert 0 < np.abs(coarse - logits).max() < 0.1 * logits.std()
