"""What is measured of starts, imports and compilations, without looking at the clock."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.speed import start
from qkd_jax.config import LSTMConfig, QuantConfig, TeacherConfig
from qkd_jax.distill.objectives import distillation_loss, weighted_bce
from qkd_jax.errors import InputError
from qkd_jax.models.build import build_model
from tests.detectors import PLAIN, random_detector

TINY = LSTMConfig(hidden_size=4, quant=QuantConfig.paper(8))


def test_the_first_line_is_not_awaited_to_the_end():
    endless = "print('one', flush=True); print('two', flush=True); import time; time.sleep(1e6)"
    assert start.first_line([sys.executable, "-c", endless]) == "one\n"


def test_silence_is_refused():
    with pytest.raises(InputError, match="expected a line"):
        start.first_line([sys.executable, "-c", ""])


def test_detect_beside_a_script(monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    monkeypatch.setattr(start, "untrained", lambda *_: (random_detector(PLAIN, mels=64), None))
    (row,) = start.starts(1)
    assert row.peer == "a script with ONNX Runtime" and row.off <= start.CLOSE
    assert (len(row.seconds), len(row.peer_seconds), row.at_most) == (1, 1, 1.0)
    monkeypatch.setattr(start, "SCRIPT", start.SCRIPT.replace("[0][0]", "[0][1]"))
    with pytest.raises(InputError, match="the script: expected the peer within"):
        list(start.starts(1))


def test_imports_by_hand(monkeypatch):
    times = dict(zip((*start.IMPORTS, "import jax"), ([0.1, 0.1], [0.9, 1.1], [2.0, 2.0], [0.6, 0.8])))

    def in_turns(calls, rounds):
        assert list(calls) == list(times) and rounds == 2
        return times.copy()

    monkeypatch.setattr(start, "in_turns", in_turns)
    found = list(start.imports(2))
    assert [(row.ours, row.met, row.note) for row in found] == [
        ("import qkd_jax", True, "-0.60 s"),
        ("from qkd_jax import lstm_scan", False, "+0.30 s"),
        ("from qkd_jax import *", None, "+1.30 s"),
    ]
    assert found[1].at_most == pytest.approx(0.7 + 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("network", [TINY, TeacherConfig(blocks=(1,), growth=2, stem=2)])
def test_the_step_is_that_of_the_equations(network):
    step, new_state, examples = start.train_step(network, (3, 20, 8))
    state, batch = new_state(), jax.tree.map(jnp.asarray, examples)
    logits, _ = build_model(network, 3).apply(
        state.model, batch["features"], train=True, mutable=["batch_stats"]
    )
    if network is TINY:
        expected = distillation_loss(logits, batch["labels"], batch["labels"], alpha=0.5, temperature=2.0)
    else:
        expected = weighted_bce(logits, batch["labels"])
    before = jax.tree.map(np.array, state.params)
    after, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    moved = jax.tree.map(lambda old, new: bool(abs(old - new).max() > 0), before, after.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
def test_compilations(monkeypatch):
    student = "the paper's student, 8 bits"
    monkeypatch.setattr(start, "COMPILED", {student: start.COMPILED[student]})
    monkeypatch.setattr(start, "starts", lambda rounds: iter(()))
    monkeypatch.setattr(start, "imports", lambda rounds: iter(()))
    (row,) = start.rows(1, (2, 10, 8))
    assert row.what == f"train step of {student}, 2 × 10 × 8: to be compiled" and row.at_most == 15
    assert len(row.seconds) == 1 and row.seconds[0] >= float(row.note.split()[0]) - 0.05
    with pytest.raises(InputError, match="compiling nothing: ended with status 1"):
        start.compiled_anew("nothing", (2, 10, 8))
