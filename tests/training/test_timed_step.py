"""One update of a model of timed events and its mean teacher, against a computation by hand."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from qkd_jax.config import CRNNConfig, EventObjective, EventRecipe, ModelConfig
from qkd_jax.distill.objectives import consistency_loss, label_loss, teacher_loss
from qkd_jax.models.common import Logits, normalize
from qkd_jax.run_folder.state import init_state, make_optimizer
from qkd_jax.training.step import make_timed_step
from tests.networks import timed_batch

pytestmark = pytest.mark.usefixtures("compiled_quickly")

FRAMES, MELS, EVENTS, STEPS = 8, 3, 2, 100
# Only the grid of the network matters here: a step of four frames.
NETWORK = CRNNConfig(channels=(4,), pools=((4, 1),))
RECIPE = EventRecipe(ramp=0.0, clip_norm=1e6)
RATE = 0.01


class Linear(nn.Module):
    """A model of one product, so that the training state is all that matters."""

    @nn.compact
    def step_logits(self, features, *, train=False):
        x = normalize(features).reshape(features.shape[0], 2, -1)
        frames = nn.Dense(EVENTS)(x)
        embedding = nn.Dense(5, name="embedding")(x)
        return Logits(frames.max(axis=1), frames, embedding)

    def __call__(self, features, *, train=False):
        return self.step_logits(features, train=train).clip


MODEL = Linear()


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    features, embedding = rng.normal(0, 1, (6, FRAMES, MELS)), rng.normal(0, 1, (6, 2, 5))
    return timed_batch("sswwuu", FRAMES, EVENTS, features=features, embedding=embedding)


def settings(*, teachers=(), **fields):
    objective = EventObjective(**{"consistency_weight": 0.0, **fields})
    options = {"learning_rate": RATE, "ema_decay": 0.9, "objective": objective}
    return ModelConfig(network=NETWORK, teachers=teachers, **options)


def first_state(config):
    optimizer = make_optimizer(RECIPE, RATE, STEPS)
    norm = (np.zeros(MELS, np.float32), np.ones(MELS, np.float32))
    state = init_state(MODEL, optimizer, (FRAMES, MELS), norm, 0, average=True)
    # As after some updates: the mean teacher differs from the student.
    moved = jax.tree.map(lambda leaf: leaf + 0.3, state.average)
    state = replace(state, average=moved, step=jnp.asarray(4, jnp.int32))
    if config.objective.update != "mean_step":
        return state
    mean = optimizer.init(state.average["params"])
    return replace(state, opt_state={"student": state.opt_state, "mean": mean})


def after(config, batch, recipe=RECIPE):
    return make_timed_step(MODEL, config, recipe, STEPS)(first_state(config), batch)


def logits_of(params, batch):
    variables = {"params": params, "norm": first_state(settings()).variables["norm"]}
    return MODEL.apply(variables, batch["features"], method="step_logits")


def soft_loss(params, batch):
    return 0.7 * teacher_loss(logits_of(params, batch), batch, NETWORK)


def adam(gradient, params, rate=RATE):
    """Adam's first step is the rate along the gradient's signs, up to its epsilon."""
    return jax.tree.map(lambda g, p: p - rate * g / (jnp.abs(g) + 1e-8), gradient, params)


def assert_trees(ours, theirs):
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=2e-6), ours, theirs)


def test_the_students_loss_has_terms_for_labels_consistency_teachers_and_embeddings(batch):
    weights = {"label_weight": 0.5, "consistency_weight": 3.0, "teacher_weight": 0.7, "embedding_weight": 0.2}
    config = settings(teachers=("a",), embeddings="a", **weights)
    state = first_state(config)
    mean = logits_of(state.average["params"], batch)

    def loss(params):
        logits = logits_of(params, batch)
        return (
            0.5 * label_loss(logits, batch, NETWORK)
            + 3 * consistency_loss(logits, mean)
            + 0.7 * teacher_loss(logits, batch, NETWORK)
            + 0.2 * ((logits.embedding - batch["embedding"]) ** 2).mean()
        )

    value, gradient = jax.value_and_grad(loss)(state.params)
    new, metrics = after(config, batch)
    assert_trees(new.params, adam(gradient, state.params))
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)
    terms = {"labels", "consistency", "teachers", "embeddings"}
    assert metrics.keys() == terms | {"loss", "grad_norm"}
    assert sum(metrics[term] for term in terms) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (1, 0.5), (4, 0.8), (50, 0.9)])
def test_the_mean_teacher_follows_and_soon_forgets_its_start(batch, step, share):
    config = settings()
    state = replace(first_state(config), step=jnp.asarray(step, jnp.int32))
    before = jax.tree.map(np.asarray, state.average)
    new, _ = make_timed_step(MODEL, config, RECIPE, STEPS)(state, batch)
    expected = jax.tree.map(lambda old, ours: share * old + (1 - share) * ours, before["params"], new.params)
    assert_trees(new.average["params"], expected)


def test_mean_steps_update_the_mean_teacher_and_not_the_student(batch):
    """TAKD: m <- EMA(student), then down the teachers' loss."""
    alone, _ = after(settings(), batch)
    config = settings(teachers=("a",), teacher_weight=0.7, update="mean_step", mean_learning_rate=0.25)
    new, metrics = after(config, batch)
    assert_trees(new.params, alone.params)
    expected, gradient = jax.value_and_grad(soft_loss)(alone.average["params"], batch)
    assert_trees(new.average["params"], adam(gradient, alone.average["params"], rate=RATE / 4))
    assert metrics["teachers"] == pytest.approx(float(expected), rel=1e-5)


def test_ema_ste_adds_the_mean_teachers_gradient_to_the_students(batch):
    config = settings(teachers=("a",), teacher_weight=0.7, update="ema_ste")
    state = first_state(config)
    own = jax.grad(lambda params: label_loss(logits_of(params, batch), batch, NETWORK))(state.params)
    means = jax.grad(soft_loss)(state.average["params"], batch)
    new, _ = after(config, batch)
    assert_trees(new.params, adam(jax.tree.map(jnp.add, own, means), state.params))


def test_learning_rate_and_consistency_rise(batch):
    """In the 5th update of 20 they are at exp(-5 (1 - 5/20)²); by Adam's own count it is the first."""
    config, rising = settings(consistency_weight=2.0), replace(RECIPE, ramp=0.2)
    state = first_state(config)
    new, metrics = after(config, batch, rising)
    distance = consistency_loss(logits_of(state.params, batch), logits_of(state.average["params"], batch))
    assert metrics["consistency"] == pytest.approx(float(2 * np.exp(-5 * 0.75**2) * distance), rel=1e-5)
    for moved, before in zip(jax.tree.leaves(new.params), jax.tree.leaves(state.params)):
        largest = np.abs(moved - before).max()
        assert largest == 0 or largest == pytest.approx(RATE * np.exp(-5 * 0.95**2), rel=1e-2)
