"""The objectives against NumPy, scikit-learn and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit, log_softmax, rel_entr
from sklearn.metrics import log_loss

from qkd_jax.config import CRNNConfig, LSTMConfig
from qkd_jax.distill import objectives
from qkd_jax.distill.objectives import (
    class_loss,
    distillation_loss,
    event_cross_entropy,
    fuse,
    fusion_weights,
    positive_weights,
    weighted_bce,
)
from qkd_jax.models.common import Logits
from tests.networks import timed_batch

pytestmark = pytest.mark.usefixtures("compiled_quickly")

WEIGHTS = np.array([0.5, 3.0, 12.0])


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def logits(seed, *shape):
    return np.random.default_rng(seed).normal(0, 3, shape)


def labels(*shape):
    return np.random.default_rng(9).integers(0, 2, shape).astype(np.float64)


def equation_1(z, y, w):
    """-{w_c y log f + (1 - y) log(1 - f)}, the mean over clips and events."""
    return -np.mean(w * y * np.log(sigmoid(z)) + (1 - y) * np.log(1 - sigmoid(z)))


def equation_2(z, y, teacher, w, alpha, temperature, form):
    """α T² l(y^t(T)) + (1 - α) l(y)."""
    targets = sigmoid(teacher / temperature)
    soft = equation_1(z, targets, w) if form == "paper" else equation_1(z / temperature, targets, 1)
    return alpha * temperature**2 * soft + (1 - alpha) * equation_1(z, y, w)


def f32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize("batch", [(), (5,), (2, 4)])
def test_weighted_bce_is_equation_1(batch):
    z, y = logits(0, *batch, 3), labels(*batch, 3)
    for target in (y, sigmoid(logits(1, *batch, 3))):  # labels, or a teacher's probabilities
        loss = weighted_bce(*f32(z, target, WEIGHTS))
        assert loss == pytest.approx(equation_1(z, target, WEIGHTS), rel=1e-5)
        for weight in ([], [4.0]):  # 1 by default, or one number
            loss = weighted_bce(*f32(z, target), *weight)
            assert loss == pytest.approx(equation_1(z, target, *weight or [1]), rel=1e-5)


# α is one number, or one for each event.
@pytest.mark.parametrize("form", ["hinton", "paper"])
@pytest.mark.parametrize(("alpha", "temperature"), [(0, 2), (0.7, 2), (0.3, 5), (1, 1), ([0.7, 0, 1], 2)])
def test_distillation_loss_is_equation_2(form, alpha, temperature):
    z, y, teacher = logits(0, 6, 3), labels(6, 3), logits(1, 6, 3)
    alphas = jnp.float32(alpha) if isinstance(alpha, list) else float(alpha)
    options = {"temperature": float(temperature), "positive_weight": jnp.float32(WEIGHTS), "form": form}
    loss = distillation_loss(*f32(z, y, teacher), alpha=alphas, **options)
    columns = zip(z.T, y.T, teacher.T, WEIGHTS, np.broadcast_to(alpha, 3))
    expected = np.mean([equation_2(*column, temperature, form) for column in columns])
    assert loss == pytest.approx(expected, rel=1e-5)
    # Hinton's form is the default, and without a teacher's share forms don't differ.
    default = distillation_loss(*f32(z, y, teacher), alpha=alphas, **options | {"form": "hinton"})
    del options["form"]
    assert distillation_loss(*f32(z, y, teacher), alpha=alphas, **options) == default
    assert (default == loss) == (form == "hinton" or alpha == 0)


def soft_gradient(z, teacher, temperature, form, weight=1.0):
    """Gradient of the soft loss alone (α = 1) in the student's logits, times their number."""
    z, teacher = f32(z, teacher)
    weights = jnp.full(z.shape[-1], weight)
    options = {"alpha": 1.0, "temperature": temperature, "positive_weight": weights, "form": form}
    gradient = jax.grad(distillation_loss)(z, jnp.zeros_like(z), teacher, **options)
    return z.size * gradient


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_the_optimum_of_hintons_form_is_the_teachers_logits(temperature):
    z, teacher = logits(0, 4, 3), logits(1, 4, 3)
    # The weight of positives must not move this optimum.
    assert_allclose(soft_gradient(teacher, teacher, temperature, "hinton", 7.0), 0, atol=2e-6)
    expected = temperature * (sigmoid(z / temperature) - sigmoid(teacher / temperature))
    assert_allclose(soft_gradient(z, teacher, temperature, "hinton"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [0.25, 7.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_weight_moves_the_optimum_of_the_papers_form(weight, temperature):
    teacher = logits(1, 4, 3)
    y = sigmoid(teacher / temperature)
    optimum = weight * y / (weight * y + 1 - y)
    moved = np.log(optimum / (1 - optimum))
    assert_allclose(soft_gradient(moved, teacher, temperature, "paper", weight), 0, atol=1e-4)
    assert np.abs(soft_gradient(teacher, teacher, temperature, "paper", weight)).min() > 1e-3


@pytest.mark.parametrize("form", ["hinton", "paper"])
def test_extreme_logits_give_finite_losses_and_gradients(form):
    z = jnp.array([[1e4, -1e4, 1e4, -1e4]])
    y, teacher = jnp.array([[0.0, 1.0, 1.0, 0.0]]), jnp.array([[-1e4, 1e4, 1e4, -1e4]])
    options = {"alpha": 0.5, "temperature": 2.0, "form": form}
    loss, gradient = jax.value_and_grad(distillation_loss)(z, y, teacher, **options)
    # Two of four logits are wrong by 1e4, for the labels and, tempered or not, for the teacher.
    soft = 4 * 5e3 if form == "hinton" else 4 * 1e4
    assert loss == pytest.approx((0.5 * soft + 0.5 * 1e4) / 2)
    assert np.isfinite(gradient).all()
    assert (np.sign(gradient) == [[1, -1, 0, 0]]).all()


def softmax_cross_entropy(z, t):
    return -(t * log_softmax(z, axis=-1)).sum(axis=-1)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_event_cross_entropy_is_that_of_labels_and_teacher_each_as_shares(alpha, temperature):
    z, y, teacher = logits(0, 6, 4), labels(6, 4).astype(float), logits(1, 6, 4)
    y[0], y[1] = [0, 0.5, 0.5, 0.5], 0  # a mixed clip, and one without labels
    sums = y.sum(axis=1, keepdims=True)
    hard, soft = y / np.where(sums, sums, 1), sigmoid(teacher / temperature)
    soft /= soft.sum(axis=1, keepdims=True)
    both = alpha * softmax_cross_entropy(z, soft) + (1 - alpha) * softmax_cross_entropy(z, hard)
    options = {"alpha": alpha, "temperature": temperature}
    found = event_cross_entropy(*f32(z, y, teacher), **options)
    assert found == pytest.approx(both.mean(), rel=1e-5)
    assert event_cross_entropy(*f32(z, y)) == pytest.approx(softmax_cross_entropy(z, hard).mean(), rel=1e-5)
    labelled = np.array([1, 1, 0, 1, 0, 1])
    expected = np.where(labelled, both, softmax_cross_entropy(z, soft)).mean()
    found = event_cross_entropy(*f32(z, y, teacher), **options, labelled=jnp.float32(labelled))
    assert found == pytest.approx(expected, rel=1e-5)


def test_extreme_logits_give_finite_event_cross_entropies_and_gradients():
    z, teacher = jnp.array([[1e4, -1e4], [1e4, -1e4]]), jnp.array([[-1e4, 1e4], [-1e4, -1e4]])
    both = jax.value_and_grad(event_cross_entropy)(z, jnp.zeros((2, 2)), teacher, alpha=1.0)
    assert both[0] == pytest.approx(2e4 / 2)  # of the second clip the teacher says nothing
    assert_allclose(both[1], [[0.5, -0.5], [0, 0]], atol=1e-6)


def test_the_class_loss_is_the_divergence_of_each_class_summed():
    rng = np.random.default_rng(0)
    p, z = rng.uniform(0.001, 0.999, (4, 50)).astype(np.float32), rng.normal(0, 3, (4, 50)).astype(np.float32)
    own = expit(z.astype(np.float64))
    expected = (rel_entr(p, own) + rel_entr(1 - p.astype(np.float64), 1 - own)).sum(axis=1).mean()
    assert_allclose(class_loss(jnp.asarray(z), jnp.asarray(p)), expected, rtol=1e-4)
    same = jnp.asarray(np.log(p / (1 - p.astype(np.float64))), jnp.float32)
    assert_allclose(class_loss(same, jnp.asarray(p)), 0, atol=1e-4)


def test_unknown_forms_and_rules_are_refused():
    zeros = jnp.zeros((1, 1))
    with pytest.raises(ValueError, match="expected 'hinton' or 'paper', got 'kl'"):
        # Without the annotations, which only the tests check.
        distillation_loss.__wrapped__(zeros, zeros, zeros, alpha=0.5, temperature=2.0, form="kl")
    with pytest.raises(ValueError, match="or logits, got 'median'"):
        fusion_weights("median", np.ones((2, 2)))


TARGETS = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], np.float32)
RULES = {"negatives/positives": [1 / 3, 3], "positives/negatives": [3, 1 / 3], 2.5: [2.5, 2.5]}


def test_positive_weights_follow_their_rule_and_balance_by_default():
    for rule, expected in RULES.items():
        assert_allclose(positive_weights(TARGETS, rule), expected, rtol=1e-6)
    # Interpretation 1: both terms have the same sum for a model whose posteriors are all 1/2.
    weight = positive_weights(TARGETS)
    assert_allclose((weight * TARGETS).sum(axis=0), (1 - TARGETS).sum(axis=0), rtol=1e-6)
    for value in (0, 1):
        targets = np.stack([TARGETS[:, 0], np.full(4, value)], axis=1).astype(np.float32)
        with pytest.raises(ValueError, match="expected positive and negative clips of each event"):
            positive_weights(targets)


NETWORK = CRNNConfig()
"""A step of it reads 4 frames, and the next step the next 4."""
BATCH, FRAMES, STEPS, EVENTS = 4, 13, 3, 2


def cross_entropy(targets, logits):
    """By scikit-learn, which takes labels: a target is split into a positive and a negative."""
    targets, posteriors = np.ravel(targets).astype(np.float64), sigmoid(np.ravel(logits))
    truth = np.concatenate([np.ones_like(posteriors), np.zeros_like(posteriors)])
    weight = np.concatenate([targets, 1 - targets])
    return log_loss(truth, np.concatenate([posteriors, posteriors]), sample_weight=weight, labels=[0, 1])


def random_logits(seed):
    rng = np.random.default_rng(seed)
    shapes = (BATCH, EVENTS), (BATCH, STEPS, EVENTS)
    return Logits(*(jnp.asarray(rng.normal(0, 2, shape), jnp.float32) for shape in shapes), None)


STUDENT = random_logits(0)


@pytest.fixture
def batch():
    return timed_batch("sswu", FRAMES)


def by_loop(frames, reduce):
    """The steps of `frames` [batch, FRAMES, events]: 4 frames each, the 13th left over."""
    return np.stack([reduce(frames[:, 4 * step : 4 * step + 4], axis=1) for step in range(STEPS)], axis=1)


def test_the_label_loss_covers_the_clips_that_have_labels(batch):
    steps = by_loop(batch["strong"], np.max)
    expected = cross_entropy(steps[:2], STUDENT.steps[:2]) + cross_entropy(batch["weak"][2], STUDENT.clip[2])
    loss = objectives.label_loss(STUDENT, batch, NETWORK)
    assert loss == pytest.approx(expected, rel=1e-5)
    # Targets of other clips change nothing.
    other = {"strong": batch["strong"].at[2:].set(1), "weak": batch["weak"].at[jnp.array([0, 1, 3])].set(1)}
    assert objectives.label_loss(STUDENT, batch | other, NETWORK) == loss
    nothing = batch | {"has_strong": jnp.zeros(BATCH), "has_weak": jnp.zeros(BATCH)}
    assert objectives.label_loss(STUDENT, nothing, NETWORK) == 0


def test_the_teacher_loss_covers_all_clips_and_its_optimum_is_the_teachers_posterior(batch):
    steps = by_loop(batch["teacher"], np.mean)
    expected = cross_entropy(steps, STUDENT.steps) + cross_entropy(batch["teacher_clip"], STUDENT.clip)
    assert objectives.teacher_loss(STUDENT, batch, NETWORK) == pytest.approx(expected, rel=1e-5)

    # The gradient in the logits is (σ(z) - p) / n.
    gradient = jax.grad(objectives.teacher_loss)(STUDENT, batch, NETWORK)
    assert_allclose(gradient.steps, (sigmoid(STUDENT.steps) - steps) / steps.size, atol=1e-6)
    by_clip = (sigmoid(STUDENT.clip) - batch["teacher_clip"]) / STUDENT.clip.size
    assert_allclose(gradient.clip, by_clip, atol=1e-6)


def test_consistency_moves_the_student_and_not_the_mean_teacher():
    mean_teacher = random_logits(3)
    pairs = zip(STUDENT[:2], mean_teacher[:2])
    expected = sum(np.square(sigmoid(ours) - sigmoid(theirs)).mean() for ours, theirs in pairs)
    assert objectives.consistency_loss(STUDENT, mean_teacher) == pytest.approx(expected, rel=1e-5)
    ours, theirs = jax.grad(objectives.consistency_loss, argnums=(0, 1))(STUDENT, mean_teacher)
    assert all((np.abs(leaf) > 0).all() for leaf in (ours.clip, ours.steps))
    assert not any(leaf.any() for leaf in (theirs.clip, theirs.steps))


def test_weights_rise_as_in_the_baseline():
    weights = objectives.ramp_up(jnp.array([0.0, 0.5, 1.0, 7.0]))
    assert_allclose(weights, [np.exp(-5), np.exp(-1.25), 1, 1], rtol=1e-6)


UNPOOLED = CRNNConfig(channels=(4,), pools=((1, 2),), hidden_size=2)
NETWORKS = [CRNNConfig(), UNPOOLED, LSTMConfig(), LSTMConfig(convolutions=(4, 4, 4, 4), time_strides=3)]


@pytest.mark.parametrize("network", NETWORKS, ids=["baseline", "unpooled", "plain", "strided"])
@pytest.mark.parametrize("frames", [40, 97, 618])
def test_a_step_stands_for_the_frames_in_the_middle_of_its_receptive_field(network, frames):
    steps, receptive_field, stride = network.steps(frames), network.receptive_field, network.stride
    times = jnp.arange(frames, dtype=jnp.float32)[None, :, None]
    taken = np.asarray(objectives.by_step(times, network, steps))[0, :, :, 0].astype(int)
    step_of = objectives.step_of_frame(receptive_field, stride, steps=steps, frames=frames)
    assert taken.shape == (steps, stride) and len(np.unique(taken)) == steps * stride
    for step, of_step in enumerate(taken):
        assert (step_of[of_step] == step).all()
        assert of_step.mean() == pytest.approx(step * stride + (receptive_field - 1) / 2, abs=0.5)
    assert (np.diff(step_of) >= 0).all() and (step_of[0], step_of[-1]) == (0, steps - 1)


SOFTMAX = np.exp([0.9, 0.5]) / np.exp([0.9, 0.5]).sum()


@pytest.mark.parametrize(
    ("rule", "temperature", "expected"),
    [
        ("precision", 1.0, [SOFTMAX @ sigmoid([0, 1]), SOFTMAX[::-1] @ sigmoid([2, -2])]),
        ("best", 1.0, sigmoid([0, -2])),
        ("uniform", 2.0, (sigmoid([0, 1]) + sigmoid([0.5, -1])) / 2),
        ("logits", 2.0, sigmoid([0.25, 0])),
    ],
)
def test_teachers_are_fused_by_each_rule(rule, temperature, expected):
    logits = np.array([[0.0, 2.0], [1.0, -2.0]], np.float32)[:, None]  # two teachers, one clip, two events
    precision = np.array([[0.9, 0.3], [0.5, 0.7]])
    fused = fuse(logits, fusion_weights(rule, precision), temperature)
    assert_allclose(fused[0], expected, rtol=1e-6)
