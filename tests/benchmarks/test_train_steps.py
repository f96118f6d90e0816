"""The peers of train steps compute what ours do, gradients by hand, and differences are refused."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.speed import lstm, teacher
from benchmarks.speed.measure import agree
from benchmarks.speed.teacher import (
    EVENTS,
    distillation_rows,
    in_torch_order,
    training,
)
from qkd_jax.config import DenseNetConfig, LSTMConfig, QuantConfig
from qkd_jax.errors import InputError
from qkd_jax.models.build import build_model
from qkd_jax.training.clips import make_loss

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
    assert teacher.off(how, network, mine, (logits, grads)) < 1e-4


def test_another_weight_or_gradient_is_refused():
    network, batch, mine = steps(EVEN)
    logits, grads = teacher.torch_step(network, batch, "torch")()
    wrong = [grads[0] + grads[0].flip(-1), *grads[1:]]
    with pytest.raises(InputError, match="torch: gradients: expected the peer within"):
        teacher.off("torch", network, mine, (logits, wrong))
    other = copy.deepcopy(network)
    kernel = next(other.parameters())
    kernel.data = kernel.data.flip(-1)
    with pytest.raises(InputError, match="torch: logits: expected the peer within"):
        teacher.off("torch", network, mine, teacher.torch_step(other, batch, "torch")())


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
