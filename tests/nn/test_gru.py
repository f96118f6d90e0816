"""The GRU against ONNX Runtime and a float64 loop, and its invariants."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from qkd_jax.config import QuantConfig
from qkd_jax.nn.gru import gru_init, gru_scan, gru_step
from tests.nn import cells
from tests.nn.cells import ALL16, BATCH, CHANNEL4, FLOAT, HIDDEN, INPUTS, PAPER4, PAPER8, sequence
from tests.oracles import data_parallel_gradient, straight_through
from tests.trees import assert_close

fast_scan = jax.jit(gru_scan, static_argnames=("quant", "reverse"))
fast_step = jax.jit(gru_step, static_argnames="quant")


def two_biases(seed=0):
    """Parameters of torch: w_x, w_h, b_x and b_h with columns r, z, n, all different."""
    rng, scale = np.random.default_rng(seed), np.repeat([0.5, 0.8, 1.2], HIDDEN)
    w_x, w_h = (rng.normal(size=(rows, 3 * HIDDEN)) * scale for rows in (INPUTS, HIDDEN))
    b_x, b_h = rng.normal(size=(2, 3 * HIDDEN)) * 0.4
    return [np.float64(np.float32(value)) for value in (w_x, 0.7 * w_h, b_x + 0.2, b_h)]


def parameters(seed=0):
    w_x, w_h, b_x, b_h = two_biases(seed)
    only_once = np.concatenate([b_h[: 2 * HIDDEN], np.zeros(HIDDEN)])
    ours = {"w_h": w_h, "w_x": w_x, "b": b_x + only_once, "b_h": b_h[2 * HIDDEN :]}
    return {name: jnp.asarray(value, jnp.float32) for name, value in ours.items()}


def a_carry(*batch, seed=2):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*batch, HIDDEN)) * 0.6, jnp.float32)


def onnx_gru(x, reverse):
    """Outputs [batch, time, hidden_size] of ONNX's GRU in torch's form: linear_before_reset is 1."""

    def zrn(rows):  # torch's order of gates to ONNX's
        r, z, n = np.split(rows, 3)
        return np.concatenate([z, r, n])

    w_x, w_h, b_x, b_h = two_biases()
    weights = {"w": zrn(w_x.T), "r": zrn(w_h.T), "b": np.concatenate([zrn(b_x), zrn(b_h)])}
    direction = "reverse" if reverse else "forward"
    settings = {"hidden_size": HIDDEN, "linear_before_reset": 1, "direction": direction}
    node = helper.make_node("GRU", ["x", "w", "r", "b"], ["y"], **settings)
    ends = ([helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)] for name in "xy")
    arrays = [onnx.numpy_helper.from_array(np.float32(w)[None], name) for name, w in weights.items()]
    graph = helper.make_graph([node], "gru", *ends, arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.moveaxis(np.asarray(x), 1, 0)})
    return np.moveaxis(y[:, 0], 0, 1)


class Oracle(cells.Oracle):
    """The cell with torch's two biases."""

    def step(self, h, x):
        """The next h of one example."""
        quant, (w_x, w_h, b_x, b_h) = self.quant, two_biases()
        h_r, h_z, h_n = np.split(self.q(h, quant.activations) @ self.weights(w_h, 3) + b_h, 3)
        x_r, x_z, x_n = np.split(self.q(x, quant.activations) @ self.weights(w_x, 3) + b_x, 3)
        r = self.q(1 / (1 + np.exp(-x_r - h_r)), quant.gates)
        z = self.q(1 / (1 + np.exp(-x_z - h_z)), quant.gates)
        n = self.q(np.tanh(x_n + r * h_n), quant.gates)
        return (1 - z) * n + z * self.q(h, quant.cell)


@pytest.mark.parametrize("reverse", [False, True])
def test_float_is_onnx_runtimes_by_two_biases(reverse):
    x = sequence(3, 20)
    outputs, last = fast_scan(parameters(), x, reverse=reverse)
    np.testing.assert_allclose(outputs, onnx_gru(x, reverse), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(last, outputs[:, 0 if reverse else -1])


CASES = [FLOAT, PAPER8, PAPER4, QuantConfig.per_channel(8), CHANNEL4, ALL16]


@pytest.mark.parametrize("quant", [*CASES, *cells.ONE_EACH, *cells.SOME_RANGES], ids=str)
def test_each_step_is_the_oracles(quant):
    states = list(np.float64(a_carry(8)))
    cells.assert_steps_are_the_oracles(fast_step, parameters(), Oracle(quant), states)


def test_new_parameters():
    params = gru_init(jax.random.key(0), 400, 32)
    for gate in np.split(np.float64(params["w_h"]), 3, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(32), atol=1e-5)
    assert params["w_x"].shape == (400, 96)
    np.testing.assert_allclose(params["w_x"].var(), 1 / 400, rtol=0.05)
    assert not params["b"].any() and not params["b_h"].any()
    # torch.nn.GRU(400, 32) has two biases of 3 · 32.
    assert sum(leaf.size for leaf in params.values()) == 3 * 32 * (400 + 32) + 6 * 32 - 2 * 32


@pytest.mark.parametrize("quant", [FLOAT, PAPER8, CHANNEL4], ids=str)
def test_reverse_is_the_flipped_sequence(quant):
    params, x, carry = parameters(), sequence(*BATCH), a_carry(4)
    outputs, last = fast_scan(params, x, quant=quant, reverse=True, carry=carry)
    flipped, expected = fast_scan(params, x[:, ::-1], quant=quant, carry=carry)
    assert_close((outputs, last), (flipped[:, ::-1], expected), rtol=0, atol=1e-6)
    assert np.abs(outputs - fast_scan(params, x, quant=quant, carry=carry)[0]).max() > 0.1


@pytest.mark.parametrize(("quant", "reverse"), [(FLOAT, False), (PAPER8, True), (CHANNEL4, False)], ids=str)
def test_a_sequence_may_be_cut_anywhere(quant, reverse):
    params, x, start = parameters(), sequence(*BATCH), a_carry(4)
    whole, last = fast_scan(params, x, quant=quant, reverse=reverse, carry=start)
    for cut in (0, 1, 3):
        pieces, carry = [], start
        for piece in (x[:, cut:], x[:, :cut]) if reverse else (x[:, :cut], x[:, cut:]):
            outputs, carry = fast_scan(params, piece, quant=quant, reverse=reverse, carry=carry)
            pieces.append(outputs)
        joined = np.concatenate(pieces[::-1] if reverse else pieces, axis=1)
        assert_close((joined, carry), (whole, last), rtol=0, atol=1e-5)


def reference_outputs(params, x, quant):
    """Outputs in plain autodiff, with products of floats."""
    q, shared = straight_through, 0 if quant.ranges == "channel" else (0, 1)
    w_h, w_x = (
        [q(w, quant.weights, shared) for w in jnp.split(params[name], 3, axis=1)] for name in ("w_h", "w_x")
    )
    b_r, b_z, b_n = (b[None] for b in jnp.split(params["b"], 3))

    def body(h, x_t):
        (h_r, h_z, h_n), (x_r, x_z, x_n) = (
            [q(u, quant.activations) @ w for w in gates] for u, gates in ((h, w_h), (x_t, w_x))
        )
        r, z = (q(jax.nn.sigmoid(gate), quant.gates) for gate in (h_r + x_r + b_r, h_z + x_z + b_z))
        n = q(jnp.tanh(x_n + b_n + r * (h_n + params["b_h"][None])), quant.gates)
        h = (1 - z) * n + z * q(h, quant.cell)
        return h, h

    _, outputs = jax.lax.scan(body, jnp.zeros((len(x), HIDDEN)), jnp.moveaxis(x, 1, 0))
    return jnp.moveaxis(outputs, 0, 1)


@pytest.mark.parametrize("quant", [FLOAT, PAPER4, CHANNEL4], ids=str)
def test_gradient_is_straight_through(quant):
    params, x = parameters(), sequence(3, 4)

    def loss(run, params, x):
        return (run(params, x) ** 2).sum()

    def library(params, x):
        return gru_scan(params, x, quant=quant)[0]

    got, expected = (
        jax.jit(jax.grad(partial(loss, run), argnums=(0, 1)))(params, x)
        for run in (library, partial(reference_outputs, quant=quant))
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.abs(b).max() > 1e-2
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_data_parallelism_by_hand():
    params, x = parameters(), sequence(4, 5)

    def loss(params, x):
        return (gru_scan(params, x, quant=PAPER8)[0] ** 2).sum()

    got = data_parallel_gradient(loss, (None, 0))(params, x)
    assert_close(got, jax.jit(jax.grad(loss))(params, x), rtol=1e-4, atol=1e-5)


def test_bfloat16_parameters_run():
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters()), sequence(2, 5)
    same = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    outputs = fast_scan(params, x)[0]
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(outputs), fast_scan(same, x)[0], rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("x", "carry", "message"),
    [
        (jnp.ones((2, 4, 5)), None, "x: expected 3 inputs, got 5"),
        (jnp.ones((2, 4, 3)), jnp.ones((3, 6)), r"carry: expected shape \(2, 6\), got \(3, 6\)"),
        (jnp.ones((2, 4, 3)), jnp.ones(6), r"carry: expected shape \(2, 6\), got \(6,\)"),
    ],
)
def test_wrong_shapes_are_refused(x, carry, message, monkeypatch):
    # The library's own errors, without the annotations that only tests check.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        gru_scan(parameters(), x, carry=carry)
    with pytest.raises(ValueError, match=message):
        gru_step(parameters(), carry, x[:, 0])
