"""The jitted update: donation, one compilation, lowering for every platform, and one golden step."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax

from qkd_jax.config import ClipRecipe, DenseNetConfig, LSTMConfig, QuantConfig
from qkd_jax.distill.objectives import distillation_loss, weighted_bce
from qkd_jax.models.build import build_model
from qkd_jax.models.common import Logits
from qkd_jax.run_folder.state import init_state, make_optimizer
from qkd_jax.training.clips import loss_on, with_classes
from qkd_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("compiled_quickly")

EIGHT = QuantConfig(weights=8, activations=8, output=8)
MODELS = {
    "teacher": DenseNetConfig(blocks=(1, 1), growth=4, stem=4),
    "float": LSTMConfig(hidden_size=6),
    "4-bit": LSTMConfig(hidden_size=6, quant=QuantConfig.paper(4)),
    "convolutions": LSTMConfig(convolutions=(3, 4), time_strides=1, hidden_size=6, quant=EIGHT),
}
NORM = (np.full(8, 0.5, np.float32), np.full(8, 2.0, np.float32))
CONSTANT = ClipRecipe(schedule="constant")
assert_close = partial(assert_allclose, rtol=1e-5, atol=1e-6)


def loss(logits, batch):
    return distillation_loss(logits, batch["labels"], batch["teacher_logits"], alpha=0.7, temperature=2.0)


def setup(name, recipe=CONSTANT, rate=1e-3, **options):
    """The model and its optimizer, the first state, and a batch."""
    model, optimizer = build_model(MODELS[name], 2), make_optimizer(recipe, rate, 100)
    rng = np.random.default_rng(0)
    batch = {
        "features": rng.normal(size=(4, 24, 8)).astype(np.float32),
        "labels": rng.integers(0, 2, (4, 2)).astype(np.float32),
        "teacher_logits": rng.normal(size=(4, 2)).astype(np.float32),
    }
    state = init_state(model, optimizer, (24, 8), NORM, 0, **options)
    return model, optimizer, state, jax.tree.map(jnp.asarray, batch)


def test_the_loss_of_classes_is_added_by_its_weight_relative_to_the_prior():
    rng = np.random.default_rng(0)
    z, classes, p = rng.normal(size=(4, 2)), rng.normal(size=(4, 5)), rng.uniform(0.1, 0.9, (4, 5))
    prior, batch = np.array([0.01, 0.1, 0.2, 0.5, 0.9]), {"classes": jnp.asarray(p, jnp.float32)}
    clip, classes_ = (jnp.asarray(each, jnp.float32) for each in (z, classes))
    logits = Logits(clip, jnp.zeros((4, 1, 2)), classes=classes_)
    both = with_classes(lambda clip, batch: jnp.square(clip).sum(), 0.3, jnp.asarray(prior, jnp.float32))
    own = 1 / (1 + (1 / prior - 1) * np.exp(-classes))
    divergence = p * np.log(p / own) + (1 - p) * np.log((1 - p) / (1 - own))
    assert_close(both(logits, batch), np.square(z).sum() + 0.3 * divergence.sum() / 4)


def test_softmax_is_added_by_its_weight_if_each_clip_has_one_event():
    rng = np.random.default_rng(0)
    z, y, teacher = rng.normal(size=(6, 3)), np.eye(3)[[0, 1, 2, 0, 1, 2]], rng.normal(size=(6, 3))
    logits = jnp.asarray(z, jnp.float32)
    batch = {"labels": jnp.asarray(y, jnp.float32), "teacher_logits": jnp.asarray(teacher, jnp.float32)}
    recipe = ClipRecipe(alpha=0.3, temperature=2.0, softmax_weight=0.7)
    posteriors = 1 / (1 + np.exp(-teacher / 2))
    soft = 0.7 * y + 0.3 * posteriors / posteriors.sum(axis=1, keepdims=True)
    for known, target in ((None, y), (np.array([True, True, False]), y), (np.ones(3, bool), soft)):
        alone, both = (
            loss_on(y, each, known)(logits, batch) for each in (replace(recipe, softmax_weight=0.0), recipe)
        )
        more = -(target * log_softmax(z, axis=1)).sum(axis=1).mean()
        assert_close(both - alone, 0.7 * more, rtol=1e-4)
    several = np.r_[y, [[1, 1, 0]]]
    with_and_without = (
        loss_on(several, each, None)(logits, batch) for each in (recipe, replace(recipe, softmax_weight=0.0))
    )
    assert len(set(map(float, with_and_without))) == 1


@pytest.mark.parametrize(
    "name",
    ["float", "4-bit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("teacher", "convolutions"))],
)
def test_step_equals_adam_by_hand(name):
    model, optimizer, state, batch = setup(name)

    def objective(params):
        variables = {"params": params, **state.variables}
        logits, updated = model.apply(variables, batch["features"], train=True, mutable=["batch_stats"])
        return loss(logits, batch), updated

    (value, updated), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient)))
    shrink = min(1.0, ClipRecipe().clip_norm / norm)
    # Adam's first step: m / (1 - b1) = g, sqrt(v / (1 - b2)) = |g|.
    expected = jax.tree.map(
        lambda p, g: p - 1e-3 * shrink * g / (jnp.abs(shrink * g) + 1e-8), state.params, gradient
    )
    before = jax.tree.map(np.array, state.variables["norm"])
    new, metrics = make_train_step(model, optimizer, loss)(state, batch)

    assert_allclose(metrics["loss"], value, rtol=1e-5)
    assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    assert int(new.step) == 1

    def assert_moved(got, wanted, grad):
        clear = np.abs(grad) > 1e-5  # where rounding can't change the sign of the gradient
        assert_allclose(np.asarray(got)[clear], np.asarray(wanted)[clear], atol=2e-5)

    jax.tree.map(assert_moved, new.params, expected, gradient)
    statistics = (each.get("batch_stats") for each in (new.variables, updated))
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=1e-6), *statistics)
    jax.tree.map(assert_array_equal, new.variables["norm"], before)


def test_gradient_norm_is_clipped_before_adam():
    optimizer = make_optimizer(replace(CONSTANT, clip_norm=1.0), 1e-3, 100)
    state = optimizer.init({"w": jnp.zeros(2)})
    for gradient in (jnp.array([30.0, 40.0]), jnp.array([0.3, 0.4])):
        updates, state = optimizer.update({"w": gradient}, state, {"w": jnp.zeros(2)})
    # Clipped, the gradients are (0.6, 0.8) and (0.3, 0.4); unclipped, the first would dominate the moments.
    m, v = np.zeros(2), np.zeros(2)
    for gradient in (np.array([0.6, 0.8]), np.array([0.3, 0.4])):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    expected = -1e-3 * (m / (1 - 0.9**2)) / (np.sqrt(v / (1 - 0.999**2)) + 1e-8)
    assert_allclose(updates["w"], expected, rtol=1e-4)


def test_without_a_largest_norm_nothing_is_clipped():
    optimizer, gradients = make_optimizer(replace(CONSTANT, clip_norm=None), 1e-3, 100), [30.0, 0.3]
    state = optimizer.init({"w": jnp.zeros(1)})
    for gradient in gradients:
        updates, state = optimizer.update({"w": jnp.array([gradient])}, state, {"w": jnp.zeros(1)})
    m = 0.1 * (0.9 * gradients[0] + gradients[1]) / (1 - 0.9**2)
    v = 0.001 * (0.999 * gradients[0] ** 2 + gradients[1] ** 2) / (1 - 0.999**2)
    assert_allclose(updates["w"], [-1e-3 * m / (np.sqrt(v) + 1e-8)], rtol=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_learning_rate_stays_or_falls_to_zero_over_all_steps(schedule):
    optimizer = make_optimizer(ClipRecipe(schedule=schedule), 0.01, 10)
    params = {"w": jnp.zeros(1)}
    state, moved = optimizer.init(params), []
    for _ in range(11):
        # With a constant gradient, Adam's step is the learning rate.
        updates, state = optimizer.update({"w": jnp.ones(1)}, state, params)
        moved.append(-float(updates["w"][0]))
    expected = {"constant": np.ones(11), "cosine": (1 + np.cos(np.pi * np.arange(11) / 10)) / 2}
    assert_allclose(moved, 0.01 * expected[schedule], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_compiles_once_and_donates(name):
    model, optimizer, state, batch = setup(name)
    train_step = make_train_step(model, optimizer, loss)
    first = jax.tree.leaves(state.params)[0]
    for _ in range(3):
        state, _ = train_step(state, batch)
    assert train_step._cache_size() == 1
    assert first.is_deleted()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])  # on a CPU all other tests run
def test_lowers_for_every_platform_at_full_precision(name, platform):
    model, optimizer, state, batch = setup(name)
    exported = jax.export.export(make_train_step(model, optimizer, loss), platforms=[platform])(state, batch)
    lines = exported.mlir_module().splitlines()
    products = [line for line in lines if "stablehlo.dot_general" in line or "stablehlo.convolution" in line]
    assert products
    # None of the objective's products may run in TF32 or bfloat16 by accident.
    assert all("HIGHEST" in line for line in products)


def test_the_loss_falls_on_one_batch():
    model, _, state, batch = setup("4-bit")
    optimizer, values = optax.adam(3e-2), []
    train_step = make_train_step(model, optimizer, lambda z, batch: weighted_bce(z, batch["labels"]))
    state = replace(state, opt_state=optimizer.init(state.params))
    for _ in range(60):
        state, metrics = train_step(state, batch)
        values.append(float(metrics["loss"]))
    assert values[-1] < 0.3 * values[0]


@pytest.mark.parametrize("name", ["float", "convolutions"])
def test_the_average_follows_parameters_and_statistics_by_its_decay(name):
    model, optimizer, state, batch = setup(name, ClipRecipe(), 0.1, average=True)

    def moving(state):
        return jax.tree.map(np.array, [state.params, state.variables.get("batch_stats")])

    average = moving(state)
    train_step = make_train_step(model, optimizer, loss, ema_decay=0.3)
    for step in range(6):
        state, _ = train_step(state, batch)
        decay = min(0.3, (1 + step) / (10 + step))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, moving(state))
    # The average is validated and kept, with the same normalization.
    jax.tree.map(assert_close, [state.model["params"], state.model.get("batch_stats")], average)
    assert state.model["norm"] is state.variables["norm"]


@pytest.mark.slow
def test_the_average_does_not_affect_the_training():
    model, optimizer, plain, batch = setup("4-bit")
    averaged = setup("4-bit", average=True)[2]
    for _ in range(3):
        plain, metrics = make_train_step(model, optimizer, loss)(plain, batch)
        averaged, others = make_train_step(model, optimizer, loss, ema_decay=0.9)(averaged, batch)
        assert_allclose(metrics["loss"], others["loss"], rtol=1e-6)
    assert plain.average is None
    jax.tree.map(assert_close, averaged.params, plain.params)
