"""The objectives of sound event detection against NumPy, scikit-learn and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from qkd_jax.config import CRNNConfig, LSTMConfig
from qkd_jax.distill.timed_objectives import (
    by_step,
    consistency_loss,
    fuse,
    fusion_weights,
    label_loss,
    steepness,
    step_of_frames,
    teacher_loss,
)
from qkd_jax.models.common import Logits

BATCH, FRAMES, STEPS, EVENTS, SPAN = 4, 13, 3, 2, (4, 4)


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def cross_entropy(targets, logits):
    """scikit-learn's takes labels; a probability is so much of either."""
    targets, said = np.ravel(targets).astype(np.float64), sigmoid(np.ravel(logits))
    truth = np.concatenate([np.ones_like(said), np.zeros_like(said)])
    weight = np.concatenate([targets, 1 - targets])
    return log_loss(truth, np.concatenate([said, said]), sample_weight=weight, labels=[0, 1])


@pytest.fixture
def found():
    rng = np.random.default_rng(0)
    return Logits(
        jnp.asarray(rng.normal(0, 2, (BATCH, EVENTS)), jnp.float32),
        jnp.asarray(rng.normal(0, 2, (BATCH, STEPS, EVENTS)), jnp.float32),
        None,
    )


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    arrays = {
        "strong": (rng.random((BATCH, FRAMES, EVENTS)) < 0.2).astype(np.float32),
        "weak": (rng.random((BATCH, EVENTS)) < 0.5).astype(np.float32),
        "has_strong": np.array([1, 1, 0, 0], np.float32),
        "has_weak": np.array([0, 0, 1, 0], np.float32),
        "teacher": rng.random((BATCH, FRAMES, EVENTS), np.float32),
        "teacher_clip": rng.random((BATCH, EVENTS), np.float32),
    }
    return {key: jnp.asarray(value) for key, value in arrays.items()}


def by_loop(frames, how):
    """The steps of `frames` [batch, FRAMES, events]: of 4 frames each, the 13th left over."""
    return np.stack([how(frames[:, 4 * step : 4 * step + 4], axis=1) for step in range(STEPS)], axis=1)


def test_labels_count_where_they_are_known(found, batch):
    steps = by_loop(batch["strong"], np.max)
    expected = cross_entropy(steps[:2], found.steps[:2]) + cross_entropy(batch["weak"][2], found.clip[2])
    assert label_loss(found, batch, SPAN) == pytest.approx(expected, rel=1e-5)
    # What stands where nothing is known changes nothing.
    other = {"strong": batch["strong"].at[2:].set(1), "weak": batch["weak"].at[jnp.array([0, 1, 3])].set(1)}
    assert label_loss(found, batch | other, SPAN) == label_loss(found, batch, SPAN)
    nothing = batch | {"has_strong": jnp.zeros(BATCH), "has_weak": jnp.zeros(BATCH)}
    assert label_loss(found, nothing, SPAN) == 0


def test_teachers_speak_of_all_clips(found, batch):
    steps = by_loop(batch["teacher"], np.mean)
    expected = cross_entropy(steps, found.steps) + cross_entropy(batch["teacher_clip"], found.clip)
    assert teacher_loss(found, batch, SPAN) == pytest.approx(expected, rel=1e-5)


def test_the_optimum_is_at_the_teachers_probability(batch):
    """The gradient in the logits is (σ(z) - p) / n: zero where the student says what the teacher does."""
    steps = by_loop(batch["teacher"], np.mean)

    def loss(frames, clip):
        return teacher_loss(Logits(clip, frames, None), batch, SPAN)

    rng = np.random.default_rng(2)
    frames = jnp.asarray(rng.normal(0, 1, steps.shape), jnp.float32)
    clip = jnp.asarray(rng.normal(0, 1, batch["teacher_clip"].shape), jnp.float32)
    of_frames, of_clip = jax.grad(loss, argnums=(0, 1))(frames, clip)
    np.testing.assert_allclose(of_frames, (sigmoid(frames) - steps) / steps.size, atol=1e-6)
    np.testing.assert_allclose(of_clip, (sigmoid(clip) - batch["teacher_clip"]) / clip.size, atol=1e-6)


def test_consistency_moves_the_student_and_not_its_mean(found):
    rng = np.random.default_rng(3)
    mean = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 2, x.shape), jnp.float32), found)
    expected = sum(
        np.square(sigmoid(ours) - sigmoid(theirs)).mean() for ours, theirs in zip(found[:2], mean[:2])
    )
    assert consistency_loss(found, mean) == pytest.approx(expected, rel=1e-5)
    ours, theirs = jax.grad(consistency_loss, argnums=(0, 1))(found, mean)
    assert all((np.abs(leaf) > 0).all() for leaf in jax.tree.leaves(ours))
    assert not any(leaf.any() for leaf in jax.tree.leaves(theirs))


def test_weights_rise_as_the_baselines_do():
    np.testing.assert_allclose(
        steepness(jnp.array([0.0, 0.5, 1.0, 7.0])), [np.exp(-5), np.exp(-1.25), 1, 1], rtol=1e-6
    )


NETWORKS = [
    CRNNConfig(),
    CRNNConfig(channels=(4,), pools=((1, 2),), hidden_size=2),
    LSTMConfig(),
    LSTMConfig(convolutions=(4, 4, 4, 4), time_strides=3),
]


@pytest.mark.parametrize("network", NETWORKS, ids=["baseline", "unpooled", "plain", "halved"])
@pytest.mark.parametrize("frames", [40, 97, 618])
def test_every_step_stands_for_frames_of_its_own(network, frames):
    """Frames go to the step that they are taken for; those of a step are in the middle of what it reads."""
    steps, (read, hop) = network.steps(frames), network.span
    times = jnp.arange(frames, dtype=jnp.float32)[None, :, None]
    taken = np.asarray(by_step(times, network.span, steps))[0, :, :, 0].astype(int)
    stands = step_of_frames(network.span, steps, frames)
    assert taken.shape == (steps, hop) and len(np.unique(taken)) == steps * hop
    for step, of_step in enumerate(taken):
        assert (stands[of_step] == step).all()
        assert of_step.mean() == pytest.approx(step * hop + (read - 1) / 2, abs=0.5)
    assert (np.diff(stands) >= 0).all() and (stands[0], stands[-1]) == (0, steps - 1)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rule=st.sampled_from(["precision", "uniform", "best", "logits"]),
    temperature=st.floats(0.5, 4),
)
def test_what_teachers_say_together_lies_between_them(seed, rule, temperature):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (3, 5, STEPS, EVENTS)).astype(np.float32)
    precision = rng.random((3, EVENTS))
    fused = fuse(logits, fusion_weights(rule, precision), temperature)
    each = sigmoid(logits / temperature)
    assert (fused >= each.min(axis=0) - 1e-6).all() and (fused <= each.max(axis=0) + 1e-6).all()
    alike = np.repeat(logits[:1], 3, axis=0)
    np.testing.assert_allclose(fuse(alike, fusion_weights(rule, precision), temperature), each[0], atol=1e-6)


def test_fusion_by_each_rule():
    logits = np.array([[0.0, 2.0], [1.0, -2.0]], np.float32)[:, None]  # two teachers, one clip, two events
    precision = np.array([[0.9, 0.3], [0.5, 0.7]])
    softmax = np.exp([0.9, 0.5]) / np.exp([0.9, 0.5]).sum()
    by_precision = fuse(logits, fusion_weights("precision", precision))
    assert by_precision[0, 0] == pytest.approx(softmax @ sigmoid([0, 1]))
    assert by_precision[0, 1] == pytest.approx(softmax[::-1] @ sigmoid([2, -2]))
    best = fuse(logits, fusion_weights("best", precision))
    np.testing.assert_allclose(best[0], sigmoid([0, -2]), rtol=1e-6)
    uniform = fuse(logits, fusion_weights("uniform", precision), 2.0)
    np.testing.assert_allclose(uniform[0], (sigmoid([0, 1]) + sigmoid([0.5, -1])) / 2, rtol=1e-6)
    mean = fuse(logits, fusion_weights("logits", precision), 2.0)
    np.testing.assert_allclose(mean[0], sigmoid([0.25, 0]), rtol=1e-6)
    with pytest.raises(ValueError, match="or logits, got 'median'"):
        fusion_weights("median", precision)
