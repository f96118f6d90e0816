import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.distill.objectives import distillation_loss, positive_weights, weighted_bce

WEIGHTS = np.array([0.5, 3.0, 12.0])


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def logits(seed, *shape):
    return np.random.default_rng(seed).normal(0, 3, shape)


def labels(*shape):
    return np.random.default_rng(9).integers(0, 2, shape).astype(np.float64)


def equation_1(z, y, w):
    """-{w_c y log f + (1 - y) log(1 - f)}, the mean over clips and events."""
    return -np.mean(w * y * np.log(sigmoid(z)) + (1 - y) * np.log(1 - sigmoid(z)))


def equation_2(z, y, teacher, w, alpha, temperature, form):
    """Alpha T^2 l(y^t(T)) + (1 - alpha) l(y)."""
    soft = sigmoid(teacher / temperature)
    taught = equation_1(z, soft, w) if form == "paper" else equation_1(z / temperature, soft, 1)
    return alpha * temperature**2 * taught + (1 - alpha) * equation_1(z, y, w)


def f32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize("batch", [(), (5,), (2, 4)])
def test_weighted_bce_is_equation_1(batch):
    z, y = logits(0, *batch, 3), labels(*batch, 3)
    for target in (y, sigmoid(logits(1, *batch, 3))):  # labels, or a teacher's probabilities
        loss = weighted_bce(*f32(z, target, WEIGHTS))
        assert loss == pytest.approx(equation_1(z, target, WEIGHTS), rel=1e-5)


def test_weights_are_one_unless_given_and_may_be_one_number():
    z, y = logits(0, 5, 3), labels(5, 3)
    assert weighted_bce(*f32(z, y)) == pytest.approx(equation_1(z, y, 1), rel=1e-5)
    assert weighted_bce(*f32(z, y), 4.0) == pytest.approx(equation_1(z, y, 4), rel=1e-5)


@pytest.mark.parametrize("form", ["hinton", "paper"])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.0, 2.0), (0.7, 2.0), (0.3, 5.0), (1.0, 1.0)])
def test_distillation_loss_is_equation_2(form, alpha, temperature):
    z, y, teacher = logits(0, 6, 3), labels(6, 3), logits(1, 6, 3)
    loss = distillation_loss(
        *f32(z, y, teacher),
        alpha=alpha,
        temperature=temperature,
        positive_weight=jnp.asarray(WEIGHTS, jnp.float32),
        form=form,
    )
    expected = equation_2(z, y, teacher, WEIGHTS, alpha, temperature, form)
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["hinton", "paper"])
def test_each_event_may_have_its_own_alpha(form):
    z, y, teacher, alpha = logits(0, 6, 3), labels(6, 3), logits(1, 6, 3), [0.7, 0.0, 1.0]
    loss = distillation_loss(
        *f32(z, y, teacher),
        alpha=jnp.asarray(alpha),
        temperature=2.0,
        positive_weight=jnp.asarray(WEIGHTS, jnp.float32),
        form=form,
    )
    columns = zip(z.T, y.T, teacher.T, WEIGHTS, alpha)
    expected = [equation_2(*column, 2.0, form) for column in columns]
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)


def test_hinton_is_the_default_form():
    arguments, settings = (
        f32(logits(0, 6, 3), labels(6, 3), logits(1, 6, 3)),
        {"alpha": 0.5, "temperature": 3.0},
    )
    default = distillation_loss(*arguments, **settings)
    assert default == distillation_loss(*arguments, **settings, form="hinton")
    assert default != distillation_loss(*arguments, **settings, form="paper")


def soft_gradient(z, teacher, temperature, form, weight=1.0):
    """Gradient of the soft term alone (alpha = 1) in the student's logits, times their number."""
    z, teacher = f32(z, teacher)
    gradient = jax.grad(distillation_loss)(
        z,
        jnp.zeros_like(z),
        teacher,
        alpha=1.0,
        temperature=temperature,
        positive_weight=jnp.full(z.shape[-1], weight),
        form=form,
    )
    return z.size * gradient


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_hinton_pulls_to_the_teachers_logits_and_stops_there(temperature):
    z, teacher = logits(0, 4, 3), logits(1, 4, 3)
    # The weight of positives must not move this optimum.
    np.testing.assert_allclose(soft_gradient(teacher, teacher, temperature, "hinton", 7.0), 0, atol=2e-6)
    expected = temperature * (sigmoid(z / temperature) - sigmoid(teacher / temperature))
    np.testing.assert_allclose(
        soft_gradient(z, teacher, temperature, "hinton"), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("weight", [0.25, 7.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_papers_optimum_is_moved_by_the_weight(weight, temperature):
    teacher = logits(1, 4, 3)
    y = sigmoid(teacher / temperature)
    optimum = weight * y / (weight * y + 1 - y)
    moved = np.log(optimum / (1 - optimum))
    np.testing.assert_allclose(soft_gradient(moved, teacher, temperature, "paper", weight), 0, atol=1e-4)
    assert np.abs(soft_gradient(teacher, teacher, temperature, "paper", weight)).min() > 1e-3


def test_temperature_squared_keeps_the_size_of_the_gradient():
    """For a high T the gradient tends to (z - t) / 4, whatever T is (Hinton et al. 2015, section 2.1)."""
    z, teacher = logits(0, 4, 3), logits(1, 4, 3)
    for temperature in (50.0, 200.0):
        gradient = soft_gradient(z, teacher, temperature, "hinton")
        np.testing.assert_allclose(gradient, (z - teacher) / 4, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("form", ["hinton", "paper"])
def test_extreme_logits_stay_finite(form):
    z = jnp.array([[1e4, -1e4, 1e4, -1e4]])
    y, teacher = jnp.array([[0.0, 1.0, 1.0, 0.0]]), jnp.array([[-1e4, 1e4, 1e4, -1e4]])
    loss, gradient = jax.value_and_grad(distillation_loss)(
        z, y, teacher, alpha=0.5, temperature=2.0, form=form
    )
    # Two of four logits are wrong by 1e4 to the labels and, tempered or not, to the teacher.
    taught = 4 * 5e3 if form == "hinton" else 4 * 1e4
    assert loss == pytest.approx((0.5 * taught + 0.5 * 1e4) / 2)
    assert np.isfinite(gradient).all()
    assert (np.sign(gradient) == [[1, -1, 0, 0]]).all()


def test_another_form_is_an_error():
    zeros = jnp.zeros((1, 1))
    with pytest.raises(ValueError, match="expected 'hinton' or 'paper', got 'kl'"):
        # Past the annotations, which the tests check, as a caller's own code would come.
        distillation_loss.__wrapped__(zeros, zeros, zeros, alpha=0.5, temperature=2.0, form="kl")


TARGETS = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], np.float32)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("negatives/positives", [1 / 3, 3]), ("positives/negatives", [3, 1 / 3]), (2.5, [2.5, 2.5])],
)
def test_positive_weights(rule, expected):
    np.testing.assert_allclose(positive_weights(TARGETS, rule), expected, rtol=1e-6)


def test_positive_weights_balance_positives_and_negatives_by_default():
    # Reading 1: the sums of the two terms are equal for a model that says 1/2 to everything.
    weight = positive_weights(TARGETS)
    np.testing.assert_allclose((weight * TARGETS).sum(axis=0), (1 - TARGETS).sum(axis=0), rtol=1e-6)


@pytest.mark.parametrize("value", [0, 1])
def test_an_event_without_positives_or_negatives_has_no_weight(value):
    targets = TARGETS.copy()
    targets[:, 1] = value
    with pytest.raises(ValueError, match="expected positive and negative clips of each event"):
        positive_weights(targets)
