"""Torch's DenseNet computes what ours does, and a wrong one is refused."""

import copy
import dataclasses
import functools
import importlib.util

import chex
import jax
import numpy as np
import optax
import pytest

from benchmarks.speed.teacher import (
    EVENTS,
    in_torch_order,
    noise,
    off,
    ours,
    rows,
    torch_densenet,
    torch_step,
)
from qkd_jax.config import TeacherConfig
from qkd_jax.distill.objectives import weighted_bce
from qkd_jax.errors import InputError
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.state import init_state
from qkd_jax.training.step import make_train_step

TINY = TeacherConfig(blocks=(1, 1), growth=3, stem=4, bottleneck=2)
TINIER = dataclasses.replace(TINY, blocks=(1,))
EVEN, ODD = (4, 40, 32), (4, 41, 17)


@functools.cache
def steps(shape):
    """Torch's network with our weights, the batch, and what our step finds."""
    pytest.importorskip("torch", reason="needs torch, which is not installed")
    batch = noise(shape)
    variables = jax.jit(build_model(TINY, EVENTS).init)(jax.random.key(0), batch.features[:1])
    network = torch_densenet(TINY, variables["params"], shape)
    return network, batch, ours(TINY, variables, batch)()


@pytest.mark.parametrize(("shape", "how"), [(EVEN, "torch"), (ODD, "torch channels last")])
def test_torch_finds_our_logits_and_gradients(shape, how):
    network, batch, mine = steps(shape)
    logits, grads = torch_step(network, batch, how)()
    np.testing.assert_allclose(logits.detach().numpy(), mine[0], atol=1e-5)
    for one, other in zip(in_torch_order(mine[1], network), grads, strict=True):
        np.testing.assert_allclose(other.numpy(), one, atol=1e-5)
    assert off(how, "float32", network, mine, (logits, grads)) < 1e-4


def test_another_weight_or_gradient_is_refused():
    network, batch, mine = steps(EVEN)
    logits, grads = torch_step(network, batch, "torch")()
    wrong = [grads[0] + grads[0].flip(-1), *grads[1:]]
    with pytest.raises(InputError, match="torch: gradients: expected the peer within"):
        off("torch", "float32", network, mine, (logits, wrong))
    off("torch", "bfloat16", network, mine, (logits, wrong))
    with pytest.raises(InputError, match="torch: gradients: expected the peer within"):
        off("torch", "bfloat16", network, mine, (logits, [*grads[:-1], 2 * grads[-1]]))

    other = copy.deepcopy(network)
    kernel = next(other.parameters())
    kernel.data = kernel.data.flip(-1)
    with pytest.raises(InputError, match="torch: logits: expected the peer within"):
        off("torch", "float32", network, mine, torch_step(other, batch, "torch")())


def test_a_row_for_each_way_of_torch():
    pytest.importorskip("torch", reason="needs torch, which is not installed")
    row, operations = rows(2, EVEN, TINIER, ("torch",))
    assert (row.what, row.ours, row.peer, row.at_least) == ("4 x 40 x 32, float32", "DenseNet", "torch", 1)
    assert len(row.seconds) == len(row.peer_seconds) == 2 and 0 < row.off < 1e-4
    assert "convolution back" in operations.note and not operations.peer


@pytest.mark.slow
def test_without_torch_ours_stands_alone(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    row, _ = rows(3, EVEN, TINIER)
    assert (row.peer, row.peer_seconds, row.off, row.met) == (None, (), None, None)
    assert len(row.seconds) == 3


@pytest.mark.slow
def test_our_step_is_that_of_a_run():
    batch, (_, frames, mels) = noise(EVEN), EVEN
    model = build_model(TINIER, EVENTS)
    state = init_state(model, optax.sgd(1.0), (frames, mels), (np.zeros(mels), np.ones(mels)), seed=0)
    before = jax.tree.map(np.array, state.params)
    _, grads, statistics = ours(TINIER, state.model, batch)()
    step = make_train_step(
        model, optax.sgd(1.0), lambda logits, batch: weighted_bce(logits, batch["labels"], batch["weight"])
    )
    after, _ = step(state, batch._asdict())
    moved = jax.tree.map(lambda old, new: old - new, before, after.params)
    chex.assert_trees_all_close(moved, grads, atol=1e-5)
    chex.assert_trees_all_close(after.variables["batch_stats"], statistics["batch_stats"], atol=1e-6)
