"""How pairs are compared and shown, by hand; and that the LSTM's peers compute what ours does."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.speed import limit, lstm, quantized
from benchmarks.speed.__main__ import QUESTIONS, main
from benchmarks.speed.page import page
from benchmarks.speed.parts import operations, parts, waited
from benchmarks.speed.turns import Row, agree, in_turns
from qkd_jax.config import QuantConfig
from qkd_jax.errors import InputError

SHAPE, UNITS = (3, 12, 5), 4


def test_the_ratio_is_of_each_round():
    row = Row(what="", ours="", peer="p", seconds=[1.0, 2.0, 4.0], peer_seconds=[3.0, 2.0, 8.0], at_least=2)
    assert row.times_as_fast == (2.0, 1.5, 2.5)  # of 3, 1, 2
    assert row.met
    assert not Row(what="", ours="", seconds=[1.0, 3.0, 2.0], at_most=1.9).met
    assert Row(what="", ours="", seconds=[1.0]).met is None


def test_each_has_its_turn():
    heard = []
    calls = {name: lambda name=name: heard.append(name) for name in "ab"}
    seconds = in_turns(calls, rounds=2, repeat=2)
    assert "".join(heard) == "ab" + "aabb" * 2
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}


def test_what_does_not_agree_is_not_compared():
    assert agree("x", [1.0, -4.0], [1.0, -4.1], within=0.03) == pytest.approx(0.025)
    with pytest.raises(InputError, match=r"x: expected the peer within 0.02 of ours, found it off by 0.025"):
        agree("x", [1.0, -4.0], [1.0, -4.1], within=0.02)
    with pytest.raises(InputError, match=r"ours is \(2,\), the peer's \(1,\)"):
        agree("x", [1.0, 2.0], [1.0], within=1)
    with pytest.raises(InputError, match="nan"):
        agree("x", [1.0], [np.nan], within=1)


def test_the_page_says_what_was_measured_and_where(tmp_path):
    given = [
        {"what": "a step", "ours": "ours", "peer": "theirs", "seconds": [0.5], "peer_seconds": [0.001]}
        | {"off": 0.0123, "note": "slow", "at_least": 1.0, "at_most": None},
        {"what": "a start", "ours": "detect.py", "seconds": [2e-5], "at_most": 6e-6},
    ]
    answer = {"question": "Steps", "about": "One.", "machine": "a CPU", "device": "cpu", "versions": "jax 1"}
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/lstm.json").write_text(json.dumps(answer | {"rows": given}))
    text = page(tmp_path, ("lstm", "growth"))
    assert "## Steps\n\nOne.\n\ncpu: a CPU; jax 1." in text
    ratio = "0.002 (0.002 to 0.002)"
    assert f"| a step | ours | 500 ms | theirs | 1 ms | {ratio} | ≥ 1: missed | 0.01 | slow |" in text
    assert "| a start | detect.py | 20 µs | – | – | – | ≤ 6 µs: missed | – |  |" in text
    (tmp_path / "cpu/lstm.md").write_text("It waits for memory.\n")
    assert "It waits for memory.\n\nOn a GPU: unmeasured." in page(tmp_path, ("lstm", "growth"))
    assert text.index("On a GPU: unmeasured.") < text.index("## growth\n\nNot measured yet.")


def test_an_unknown_question_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"--only: expected some of {', '.join(QUESTIONS)}, got 'lstn'"):
        main(["--only", "lstn", "--out", str(tmp_path)])


def test_the_work_of_a_step_is_that_which_xla_counts(monkeypatch):
    """Of one step, as XLA doesn't count how often a loop runs; its sums and gates come on top."""
    batch, inputs, units = 8, 32, 64
    layer, x = lstm.parameters(inputs, units), jnp.ones((batch, 1, inputs))

    def loss(layer):
        z = x[:, 0] @ layer["w"][units:] + x[:, 0, :1] * jnp.ones((1, units)) @ layer["w"][:units]
        return jnp.sum(z**2)

    counted = jax.jit(jax.grad(loss)).lower(layer).compile().cost_analysis()["flops"]
    operations, _ = limit.lstm_work(batch, 1, inputs, units)
    back = 2 * batch * 4 * units * units  # through h, of which this loss has none
    assert operations - back == pytest.approx(counted, rel=0.1)
    monkeypatch.setattr(limit, "arithmetic", lambda: 10.0)
    monkeypatch.setattr(limit, "bandwidth", lambda: 100.0)
    assert limit.shares(40.0, 20.0, 8.0) == "50% of the device's arithmetic, 2% of its bandwidth"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("peer", ["a plain scan", "flax RNN", "torch nn.LSTM"])
def test_peers_of_the_float_lstm_have_our_loss_and_gradient(peer):
    if "torch" in peer:
        pytest.importorskip("torch", reason="the extra `peers` is not installed")
    x, layer = lstm.noise(SHAPE), lstm.parameters(SHAPE[2], UNITS)
    ways = lstm.steps(layer, x)
    loss, grad = ways["ours"].read(ways["ours"].call())
    their_loss, their_grad = ways[peer].read(ways[peer].call())
    np.testing.assert_allclose(their_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(their_grad, grad, atol=1e-6)
    turned = jnp.roll(grad, UNITS, axis=1)
    with pytest.raises(InputError, match="expected the peer within"):
        agree(peer, turned, their_grad, lstm.CLOSE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("bits", [8, 4])
def test_the_loop_in_torch_has_the_papers_scheme(bits):
    pytest.importorskip("torch", reason="the extra `peers` is not installed")
    x, layer = lstm.noise(SHAPE), lstm.parameters(SHAPE[2], UNITS)
    ours = quantized.quantized(layer, x, QuantConfig.paper(bits))
    loop = quantized.torch_loop(layer, x, bits)
    (loss, grad), (their_loss, their_grad) = ours.read(ours.call()), loop.read(loop.call())
    np.testing.assert_allclose(their_loss, loss, rtol=1e-4)
    np.testing.assert_allclose(their_grad, grad, atol=1e-5)


def test_rows_of_the_quantized_lstm_beside_our_float_step(monkeypatch):
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(quantized, "BITS", (4,))
    rows = list(quantized.rows(1, SHAPE, SHAPE, UNITS))
    schemes = [f"{scheme}, 4 bits" for scheme in quantized.SCHEMES]
    beside, apart = [row for row in rows if row.peer], [row for row in rows if not row.peer]
    assert [row.ours for row in beside] == schemes
    assert {row.peer for row in beside} == {"our float step"}
    assert [row.ours for row in apart] == [f"{name}, its operations" for name in ("float", *schemes)]


def test_the_parts_of_a_step_are_its_kinds_of_operations_and_their_shares():
    step = jax.jit(jax.value_and_grad(lambda w, x: jnp.sum(jnp.tanh(x @ w))))
    ones = jnp.ones((512, 512))
    shares = dict(part.rsplit(" ", 1) for part in parts(partial(waited, step, ones, ones)).split(", "))
    shares = {kind: int(share.rstrip("%")) for kind, share in shares.items()}
    # The products are 2 · 512³ operations each, and all else some 512².
    assert min(shares["dot"], shares["dot back"]) > 10 and shares["dot"] + shares["dot back"] > 60
    assert 97 <= sum(shares.values()) <= 103


def test_an_operation_counts_as_what_is_fused_into_it():
    hlo = """
%fused.1 (p: f32[4]) -> f32[4] {
  %e = f32[4]{0} exponential(%p), metadata={op_name="jit(f)/exp"}
  ROOT %d = (f32[4]{0}, f32[4]{0}) dot(%e, %e), metadata={op_name="jit(f)/dot_general"}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %a = f32[4]{0} add(%x, %x), metadata={op_name="jit(f)/transpose(jvp())/add_any"}
  ROOT %b.2 = f32[4]{0} fusion(%a), calls=%fused.1, metadata={op_name="jit(f)/transpose(jvp())/mul"}
}
"""
    found = operations(hlo)
    assert (found["a"], found["b.2"], found["d"]) == ("element by element back", "dot back", "dot")
