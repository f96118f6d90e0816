"""The peers of train steps compute what ours do, gradients by hand, and differences are refused."""

import copy
import dataclasses
import functools
import importlib.util

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks.speed import lstm, teacher
from benchmarks.speed.measure import agree
from benchmarks.speed.teacher import (
    EVENTS,
    distillation_rows,
    gradient,
    in_torch_order,
    teacher_rows,
    training,
)
from qkd_jax.config import ClipRecipe, DenseNetConfig, LSTMConfig, QuantConfig
from qkd_jax.distill.objectives import weighted_bce
from qkd_jax.errors import InputError
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.state import init_state, make_optimizer
from qkd_jax.training.clips import make_loss
from qkd_jax.training.step import make_train_step

SHAPE, HIDDEN_SIZE = (3, 12, 5), 4
TINY = DenseNetConfig(blocks=(1, 1), growth=3, stem=4, bottleneck=2)
TINIER = dataclasses.replace(TINY, blocks=(1,))
EVEN, ODD = (4, 40, 32), (4, 41, 17)
FLOAT = LSTMConfig(hidden_size=6)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("make", [lstm.plain_scan, lstm.flax_rnn, lstm.torch_lstm])
def test_peers_of_the_float_lstm_have_our_loss_and_gradient(make):
    if make is lstm.torch_lstm:
        pytest.importorskip("torch", reason="the extra `peers` is not installed")
    x, layer = lstm.noise(SHAPE), lstm.parameters(SHAPE[2], HIDDEN_SIZE)
    ours, peer = lstm.ours(layer, x), make(layer, x)
    loss, grad = ours.read(ours.call())
    their_loss, their_grad = peer.read(peer.call())
    np.testing.assert_allclose(their_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(their_grad, grad, atol=1e-6)
    with pytest.raises(InputError, match="expected the peer within"):
        agree("turned", jnp.roll(grad, HIDDEN_SIZE, axis=1), their_grad, lstm.CLOSE)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_loop_in_torch_has_the_papers_scheme(bits):
    pytest.importorskip("torch", reason="the extra `peers` is not installed")
    x, layer = lstm.noise(SHAPE), lstm.parameters(SHAPE[2], HIDDEN_SIZE)
    ours, loop = lstm.ours(layer, x, QuantConfig.paper(bits)), lstm.torch_loop(layer, x, bits)
    (loss, grad), (their_loss, their_grad) = ours.read(ours.call()), loop.read(loop.call())
    np.testing.assert_allclose(their_loss, loss, rtol=1e-4)
    np.testing.assert_allclose(their_grad, grad, atol=1e-5)


def test_each_scheme_has_a_row_beside_our_float_step(monkeypatch):
    monkeypatch.setattr(lstm.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(lstm, "BITS", (4,))
    rows = list(lstm.quantized_rows(1, SHAPE, SHAPE, HIDDEN_SIZE))
    assert [row.ours for row in rows] == [f"{scheme}, 4 bits" for scheme in lstm.SCHEMES]
    assert {row.peer for row in rows} == {"our float step"}
    rows = list(lstm.float_rows(1, SHAPE, HIDDEN_SIZE))
    assert [row.peer for row in rows] == ["a plain scan", "flax RNN"] and all(row.off < 1e-5 for row in rows)


@functools.cache
def steps(shape):
    """Torch's network with our weights, the batch, and the result of our step."""
    pytest.importorskip("torch", reason="needs torch, which is not installed")
    batch = teacher.noise(shape)
    variables = jax.jit(build_model(TINY, EVENTS).init)(jax.random.key(0), batch.features[:1])
    network = teacher.torch_densenet(TINY, variables["params"], shape)
    return network, batch, teacher.ours(TINY, variables, batch)()


@pytest.mark.parametrize(("shape", "how"), [(EVEN, "torch"), (ODD, "torch channels last")])
def test_torch_has_our_logits_and_gradients(shape, how):
    network, batch, mine = steps(shape)
    logits, grads = teacher.torch_step(network, batch, how)()
    np.testing.assert_allclose(logits.detach().numpy(), mine[0], atol=1e-5)
    for one, other in zip(in_torch_order(mine[1], network), grads, strict=True):
        np.testing.assert_allclose(other.numpy(), one, atol=1e-5)
    assert teacher.off(how, "float32", network, mine, (logits, grads)) < 1e-4


def test_another_weight_or_gradient_is_refused():
    network, batch, mine = steps(EVEN)
    logits, grads = teacher.torch_step(network, batch, "torch")()
    wrong = [grads[0] + grads[0].flip(-1), *grads[1:]]
    with pytest.raises(InputError, match="torch: gradients: expected the peer within"):
        teacher.off("torch", "float32", network, mine, (logits, wrong))
    teacher.off("torch", "bfloat16", network, mine, (logits, wrong))
    with pytest.raises(InputError, match="torch: gradients: expected the peer within"):
        teacher.off("torch", "bfloat16", network, mine, (logits, [*grads[:-1], 2 * grads[-1]]))
    other = copy.deepcopy(network)
    kernel = next(other.parameters())
    kernel.data = kernel.data.flip(-1)
    with pytest.raises(InputError, match="torch: logits: expected the peer within"):
        teacher.off("torch", "float32", network, mine, teacher.torch_step(other, batch, "torch")())


@pytest.mark.slow
def test_rows_of_the_teacher_with_torch_and_without(monkeypatch):
    if importlib.util.find_spec("torch"):
        (row,) = teacher_rows(2, EVEN, TINIER, ("torch",))
        assert (row.what, row.peer, row.at_least) == ("4 x 40 x 32, float32", "torch", 1)
        assert len(row.seconds) == len(row.peer_seconds) == 2 and 0 < row.off < 1e-4
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (row,) = teacher_rows(3, EVEN, TINIER)
    assert (row.peer, row.peer_seconds, row.off, row.met) == (None, (), None, None)
    assert len(row.seconds) == 3


@pytest.mark.slow
def test_our_step_of_the_teacher_is_that_of_a_run():
    batch, (_, frames, mels) = teacher.noise(EVEN), EVEN
    model = build_model(TINIER, EVENTS)
    state = init_state(model, optax.sgd(1.0), (frames, mels), (np.zeros(mels), np.ones(mels)), seed=0)
    before = jax.tree.map(np.array, state.params)
    _, grads, statistics = teacher.ours(TINIER, state.model, batch)()
    step = make_train_step(
        model, optax.sgd(1.0), lambda logits, batch: weighted_bce(logits, batch["labels"], batch["weight"])
    )
    after, _ = step(state, batch._asdict())
    moved = jax.tree.map(lambda old, new: old - new, before, after.params)
    chex.assert_trees_all_close(moved, grads, atol=1e-5)
    chex.assert_trees_all_close(after.variables["batch_stats"], statistics["batch_stats"], atol=1e-6)


@pytest.mark.slow
def test_rows_compare_cached_logits_and_other_losses_are_refused(monkeypatch):
    shape = (4, 20, 8)
    bare, live = distillation_rows(2, shape, FLOAT, TINIER)
    assert (bare.ours, bare.peer, bare.at_least) == ("cached logits", "without distillation", 1 / 1.05)
    assert (live.peer, live.at_least) == ("a live teacher", None)
    assert all(len(row.seconds) == len(row.peer_seconds) == 2 and row.off < 1e-6 for row in (bare, live))

    def all_known(recipe, weight, known):
        return make_loss(recipe, weight, None if known is None else np.ones(EVENTS, bool))

    monkeypatch.setattr(teacher, "make_loss", all_known)
    with pytest.raises(InputError, match="no event known: expected the peer within"):
        next(distillation_rows(1, shape, FLOAT, TINIER))
    monkeypatch.undo()

    def wrong(step, state, batch, teacher=None):
        return training(step, state, batch, teacher and (lambda features: teacher(features) + 1))

    monkeypatch.setattr(teacher, "training", wrong)
    with pytest.raises(InputError, match="a live teacher: expected the peer within"):
        next(distillation_rows(1, shape, FLOAT, TINIER))


@pytest.mark.parametrize("known", [np.ones(EVENTS, bool), None])
def test_gradient_by_hand_and_steps_in_a_row(known):
    shape, recipe = (4, 20, 8), ClipRecipe()
    model, optimizer = build_model(FLOAT, EVENTS), make_optimizer(recipe, 1e-3, 10)
    state = init_state(model, optimizer, shape[1:], (np.zeros(8), np.ones(8)), seed=0)
    features, labels, weight = teacher.noise(shape)
    logits_of_teacher = jax.random.normal(jax.random.key(2), (4, EVENTS))

    def loss(params):
        logits = model.apply({"params": params, **state.variables}, features)
        bce = optax.sigmoid_binary_cross_entropy
        hard = (np.where(labels == 1, np.array([1.0, 2.0, 3.0]), 1.0) * bce(logits, labels)).mean()
        if known is None:
            return hard
        return 0.5 * 2**2 * bce(logits / 2, jax.nn.sigmoid(logits_of_teacher / 2)).mean() + 0.5 * hard

    expected = ravel_pytree(jax.grad(loss)(state.params))[0]
    step = make_train_step(model, optimizer, make_loss(recipe, weight, known))
    batch = {"features": features, "labels": labels, "teacher_logits": logits_of_teacher}
    call = training(step, state, batch)
    np.testing.assert_allclose(gradient(call()), expected / 10, atol=1e-6)
    assert [int(call().step), int(call().step), int(state.step)] == [2, 3, 0]
