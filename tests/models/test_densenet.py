import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.config import TeacherConfig
from qkd_jax.models.build import build_model

TINY = {"blocks": (1, 1), "growth": 4, "stem": 4, "bottleneck": 2}
FEATURES = 2 * jax.random.normal(jax.random.key(0), (4, 40, 16)) - 5


@functools.cache
def jitted(dtype="float32"):
    """init(key, features), and apply(variables, features, train) -> logits, statistics after it."""
    model = build_model(TeacherConfig(**TINY, compute_dtype=dtype), events=3)

    @functools.partial(jax.jit, static_argnames="train")
    def apply(variables, features, train=False):
        logits, after = model.apply(variables, features, train=train, mutable=["batch_stats"])
        return logits, after["batch_stats"]

    return jax.jit(model.init), apply


@functools.cache
def tiny():
    """Variables of a tiny DenseNet, and its apply."""
    init, apply = jitted()
    variables = init(jax.random.key(1), FEATURES)
    # A step away from means of 0 and variances of 1, which would hide a fault.
    return {**variables, "batch_stats": apply(variables, FEATURES, train=True)[1]}, apply


def test_densenet_121_has_the_parameters_of_torchvisions():
    model = build_model(TeacherConfig(blocks=(6, 12, 24, 16)), events=3)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 998, 64)))["params"]
    # torchvision's 7,978,856 with a stem of one channel instead of three, and three events instead of 1000.
    expected = 7_978_856 - 2 * 64 * 7 * 7 - (1024 * 1000 + 1000) + (1024 * 3 + 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected == 6_950_659


def test_training_moves_the_statistics_and_evaluation_does_not():
    variables, apply = tiny()
    before = variables["batch_stats"]
    _, after = apply(variables, FEATURES, train=True)
    _, untouched = apply(variables, FEATURES)
    jax.tree.map(np.testing.assert_array_equal, untouched, before)

    # The first batch-norm follows the stem, a 7x7 convolution with stride 2: 0.9 of the old, 0.1 of the new.
    stem = jax.lax.conv_general_dilated(
        FEATURES[..., None],
        variables["params"]["Conv_0"]["kernel"],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    old, new = before["BatchNorm_0"], after["BatchNorm_0"]
    for key, batch in {"mean": stem.mean((0, 1, 2)), "var": stem.var((0, 1, 2))}.items():
        np.testing.assert_allclose(new[key], 0.9 * old[key] + 0.1 * batch, rtol=1e-4)


def test_evaluation_reads_the_statistics_and_training_those_of_the_batch():
    variables, apply = tiny()
    doubled = {**variables, "batch_stats": jax.tree.map(lambda x: 2 * x, variables["batch_stats"])}
    (train, _), (train_doubled, _) = (apply(v, FEATURES, train=True) for v in (variables, doubled))
    (evaluated, _), (evaluated_doubled, _) = (apply(v, FEATURES) for v in (variables, doubled))
    np.testing.assert_array_equal(train, train_doubled)
    assert np.abs(evaluated - evaluated_doubled).max() > 1e-3


def test_batch_mates_do_not_matter_in_evaluation():
    variables, apply = tiny()
    together, _ = apply(variables, FEATURES)
    alone, _ = apply(variables, FEATURES[2:3])
    np.testing.assert_allclose(alone[0], together[2], atol=1e-5)
    among_others, _ = apply(variables, FEATURES.at[:2].set(1e3))
    np.testing.assert_allclose(among_others[2], together[2], atol=1e-5)


def test_features_are_normalized_by_the_mean_and_std_kept_with_the_model():
    variables, apply = tiny()
    mean, std = jnp.linspace(-6, -4, 16), jnp.linspace(1, 3, 16)
    logits, _ = apply({**variables, "norm": {"normalize": {"mean": mean, "std": std}}}, FEATURES)
    # A new model's are 0 and 1: it takes features as they are.
    by_hand, _ = apply(variables, (FEATURES - mean[None, None]) / std[None, None])
    np.testing.assert_allclose(logits, by_hand, atol=1e-5)
    assert np.abs(logits - apply(variables, FEATURES)[0]).max() > 1e-2


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_is_close_to_float32(train):
    variables, apply = tiny()
    init, apply_bfloat16 = jitted("bfloat16")
    features = (FEATURES + 5) / 2
    logits, _ = apply(variables, features, train=train)
    coarse, stats = apply_bfloat16(variables, features, train=train)
    # Parameters, statistics and logits stay float32.
    made = jax.eval_shape(init, jax.random.key(1), FEATURES)
    assert {leaf.dtype for leaf in jax.tree.leaves([made, stats, coarse])} == {jnp.dtype("float32")}
    # Eight bits a value, some ten layers; and not nothing, or it was not computed in bfloat16.
    assert 0 < np.abs(coarse - logits).max() < 0.1 * logits.std()
