"""One update of a detector and its mean student, against the same by hand."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qkd_jax.config import CRNNConfig, ModelConfig, SedTrainConfig
from qkd_jax.distill.timed_objectives import consistency_loss, label_loss, teacher_loss
from qkd_jax.models.common import Logits, normalize
from qkd_jax.run_folder.state import init_state
from qkd_jax.training.sed_step import make_sed_step, sed_optimizer, with_mean_steps

BATCH, FRAMES, MELS, EVENTS, STEPS = 6, 8, 3, 2, 100
# Only the network's span counts here: a step of four frames.
NETWORK = CRNNConfig(channels=(4,), pools=((4, 1),))
TRAIN = SedTrainConfig(ramp=0.0, ema_decay=0.9, clip_norm=1e6)
RATE = 0.01


class Linear(nn.Module):
    """A detector of one product, so that the state of training is all that there is to see."""

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
    arrays = {
        "features": rng.normal(0, 1, (BATCH, FRAMES, MELS)).astype(np.float32),
        "strong": (rng.random((BATCH, FRAMES, EVENTS)) < 0.3).astype(np.float32),
        "weak": (rng.random((BATCH, EVENTS)) < 0.5).astype(np.float32),
        "has_strong": np.array([1, 1, 0, 0, 0, 0], np.float32),
        "has_weak": np.array([0, 0, 1, 1, 0, 0], np.float32),
        "teacher": rng.random((BATCH, FRAMES, EVENTS), np.float32),
        "teacher_clip": rng.random((BATCH, EVENTS), np.float32),
        "embedding": rng.normal(0, 1, (BATCH, 2, 5)).astype(np.float32),
    }
    return {key: jnp.asarray(value) for key, value in arrays.items()}


def settings(**fields):
    return ModelConfig(network=NETWORK, learning_rate=RATE, **{"consistency": 0.0, **fields})


def first_state(config):
    optimizer = sed_optimizer(config, TRAIN, STEPS)
    norm = (np.zeros(MELS, np.float32), np.ones(MELS, np.float32))
    state = init_state(MODEL, optimizer, (FRAMES, MELS), norm, 0, average=True)
    # As after some steps: the mean is another than the student.
    moved = jax.tree.map(lambda leaf: leaf + 0.3, state.average)
    state = dataclasses.replace(state, average=moved, step=jnp.asarray(4, jnp.int32))
    return with_mean_steps(state, config, optimizer)


def after(config, batch, train=TRAIN):
    return make_sed_step(MODEL, config, train, STEPS)(first_state(config), batch)


def found(params, batch):
    variables = {"params": params, "norm": first_state(settings()).variables["norm"]}
    return MODEL.apply(variables, batch["features"], method="step_logits")


def adam(gradient, params, rate=RATE):
    """Adam's first step goes by the rate along the gradient's signs, but for its epsilon."""
    return jax.tree.map(lambda g, p: p - rate * g / (jnp.abs(g) + 1e-8), gradient, params)


def assert_trees(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), ours, theirs)


def test_the_student_goes_down_the_loss_of_labels_agreement_teachers_and_embeddings(batch):
    config = settings(
        labels=0.5, consistency=3.0, teachers=("a",), teaching=0.7, embeddings="a", guidance=0.2
    )
    state = first_state(config)
    mean = found(state.average["params"], batch)

    def loss(params):
        said = found(params, batch)
        return (
            0.5 * label_loss(said, batch, (4, 4))
            + 3 * consistency_loss(said, mean)
            + 0.7 * teacher_loss(said, batch, (4, 4))
            + 0.2 * ((said.embedding - batch["embedding"]) ** 2).mean()
        )

    value, gradient = jax.value_and_grad(loss)(state.params)
    new, metrics = after(config, batch)
    assert_trees(new.params, adam(gradient, state.params))
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)
    terms = {"labels", "consistency", "teaching", "guidance"}
    assert metrics.keys() == terms | {"loss", "grad_norm"}
    assert sum(metrics[term] for term in terms) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (1, 0.5), (4, 0.8), (50, 0.9)])
def test_the_mean_student_follows_and_soon_forgets_how_it_began(batch, step, share):
    config = settings()
    state = dataclasses.replace(first_state(config), step=jnp.asarray(step, jnp.int32))
    before = jax.tree.map(np.asarray, state.average)
    new, _ = make_sed_step(MODEL, config, TRAIN, STEPS)(state, batch)
    expected = jax.tree.map(lambda old, ours: share * old + (1 - share) * ours, before["params"], new.params)
    assert_trees(new.average["params"], expected)


def test_taught_by_steps_of_its_own_the_mean_moves_and_the_student_does_not(batch):
    """TAKD: m <- EMA(student), then down the teachers' loss."""
    alone, _ = after(settings(), batch)
    config = settings(teachers=("a",), teaching=0.7, through="mean_step", mean_rate=0.25)
    taught, metrics = after(config, batch)
    assert_trees(taught.params, alone.params)
    gradient = jax.grad(lambda params: 0.7 * teacher_loss(found(params, batch), batch, (4, 4)))(
        alone.average["params"]
    )
    assert_trees(taught.average["params"], adam(gradient, alone.average["params"], rate=RATE / 4))
    expected = 0.7 * teacher_loss(found(alone.average["params"], batch), batch, (4, 4))
    assert metrics["teaching"] == pytest.approx(float(expected), rel=1e-5)


def test_taught_through_the_mean_the_student_gets_its_gradient(batch):
    config = settings(teachers=("a",), teaching=0.7, through="ema_ste")
    state = first_state(config)
    own = jax.grad(lambda params: label_loss(found(params, batch), batch, (4, 4)))(state.params)
    means = jax.grad(lambda params: 0.7 * teacher_loss(found(params, batch), batch, (4, 4)))(
        state.average["params"]
    )
    new, _ = after(config, batch)
    assert_trees(new.params, adam(jax.tree.map(jnp.add, own, means), state.params))


def test_rate_and_agreement_rise(batch):
    """In the 5th step of 20 they are at exp(-5 (1 - 5/20)²); by Adam's own count it is the first."""
    config, rising = settings(consistency=2.0), dataclasses.replace(TRAIN, ramp=0.2)
    state = first_state(config)
    new, metrics = after(config, batch, rising)
    agreement = consistency_loss(found(state.params, batch), found(state.average["params"], batch))
    assert metrics["consistency"] == pytest.approx(float(2 * np.exp(-5 * 0.75**2) * agreement), rel=1e-5)
    for moved, before in zip(jax.tree.leaves(new.params), jax.tree.leaves(state.params)):
        largest = np.abs(moved - before).max()
        assert largest == 0 or largest == pytest.approx(RATE * np.exp(-5 * 0.95**2), rel=1e-2)
