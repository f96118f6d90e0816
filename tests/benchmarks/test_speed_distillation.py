"""The steps that are timed: their gradients by hand, and that those which differ are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks.speed import distillation
from benchmarks.speed.distillation import CONFIG, EVENTS, gradient, noise, rows, training
from qkd_jax.config import LSTMConfig, QuantConfig, TeacherConfig, TrainConfig
from qkd_jax.errors import InputError
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.state import init_state, make_optimizer
from qkd_jax.training.step import make_loss, make_train_step

SHAPE = (4, 20, 8)
STUDENT, FLOAT = LSTMConfig(hidden_size=6, quant=QuantConfig.paper(8)), LSTMConfig(hidden_size=6)
TEACHER = TeacherConfig(blocks=(1,), growth=3, stem=4, bottleneck=2)


@pytest.mark.slow
def test_rows_compare_cached_logits():
    bare, live = rows(2, SHAPE, STUDENT, TEACHER)
    assert (bare.what, bare.ours, bare.peer) == (
        "4 x 20 x 8, 6 units",
        "cached logits",
        "without distillation",
    )
    assert (live.ours, live.peer) == ("cached logits", "a live teacher")
    assert (bare.at_least, live.at_least) == (1 / 1.05, None)
    for row in (bare, live):
        assert len(row.seconds) == len(row.peer_seconds) == 2 and row.off < 1e-6


@pytest.mark.slow
def test_a_teacher_who_knows_after_all_is_refused(monkeypatch):
    def all_known(settings, weight, known):
        return make_loss(settings, weight, None if known is None else np.ones(EVENTS, bool))

    monkeypatch.setattr(distillation, "make_loss", all_known)
    with pytest.raises(InputError, match="no event known: expected the peer within"):
        next(rows(1, SHAPE, FLOAT, TEACHER))


@pytest.mark.slow
def test_a_live_teacher_of_other_logits_is_refused(monkeypatch):
    def wrong(step, state, batch, teacher=None):
        return training(step, state, batch, teacher and (lambda features: teacher(features) + 1))

    monkeypatch.setattr(distillation, "training", wrong)
    with pytest.raises(InputError, match="a live teacher: expected the peer within"):
        next(rows(1, SHAPE, FLOAT, TEACHER))


@pytest.mark.parametrize("known", [np.ones(EVENTS, bool), None])
def test_gradient_by_hand_and_steps_in_a_row(known):
    _, frames, mels = SHAPE
    model, optimizer = build_model(FLOAT, EVENTS), make_optimizer(TrainConfig(), 1e-3, 10)
    state = init_state(model, optimizer, (frames, mels), (np.zeros(mels), np.ones(mels)), seed=0)
    batch = noise(SHAPE)
    teacher = jax.random.normal(jax.random.key(2), (4, EVENTS))

    def loss(params):
        logits = model.apply({"params": params, **state.variables}, batch["features"])
        bce = optax.sigmoid_binary_cross_entropy
        weights = np.where(batch["labels"] == 1, np.array([1.0, 2.0, 3.0]), 1.0)
        told = (weights * bce(logits, batch["labels"])).mean()
        if known is None:
            return told
        return 0.5 * 2**2 * bce(logits / 2, jax.nn.sigmoid(teacher / 2)).mean() + 0.5 * told

    expected = ravel_pytree(jax.grad(loss)(state.params))[0]
    step = make_train_step(model, optimizer, make_loss(CONFIG.distill, jnp.arange(1.0, 4.0), known))
    call = training(step, state, batch | {"teacher_logits": teacher})
    np.testing.assert_allclose(gradient(call()), expected / 10, atol=1e-6)
    assert [int(call().step), int(call().step), int(state.step)] == [2, 3, 0]
