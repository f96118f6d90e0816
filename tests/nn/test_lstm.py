"""The quantized LSTM (eq. 5 and 6) against a float64 loop, and its invariants."""

import re
from dataclasses import replace
from functools import cache, partial
from itertools import combinations

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from qkd_jax.config import QuantConfig
from qkd_jax.nn.lstm import LSTMState, lstm_init, lstm_scan, lstm_step, lstm_zeros
from tests.nn import cells
from tests.nn.cells import ALL16, BATCH, CHANNEL4, FLOAT, HIDDEN, INPUTS, PAPER4, PAPER8, sequence
from tests.oracles import data_parallel_gradient, jitted, mapped, remat, scanned, sharded, straight_through
from tests.trees import assert_close, assert_equal

CHANNEL8 = QuantConfig.per_channel(8)
SPLIT8 = QuantConfig(weights=8, activations=8, gates=8, cell=16, ranges="split")
SPLIT4 = QuantConfig(weights=4, activations=4, gates=4, cell=16, ranges="split")
SOME = [FLOAT, PAPER8, SPLIT4]


# Compiled whole, which is faster here than operation by operation.
fast_scan = jax.jit(lstm_scan, static_argnames="quant")
fast_step = jax.jit(lstm_step, static_argnames="quant")


def parameters(layers=1, seed=0, inputs=INPUTS, hidden_size=HIDDEN, dtype=jnp.float32):
    """Weights and biases of a trained network's size, none of them zero, no two gates alike."""
    rng, made = np.random.default_rng(seed), []
    for index in range(layers):
        rows = hidden_size + (hidden_size if index else inputs)
        w = rng.normal(size=(rows, 4 * hidden_size)) * np.repeat([0.5, 0.8, 1.2, 0.9], hidden_size)
        w[:hidden_size] *= 0.7  # h and x of different ranges
        b = rng.normal(size=4 * hidden_size) * 0.3 + np.repeat([1.0, -0.5, 0.1, 0.4], hidden_size)
        made.append({"w": jnp.asarray(w, dtype), "b": jnp.asarray(b, dtype)})
    return tuple(made)


def a_carry(params, *batch, seed=2):
    rng = np.random.default_rng(seed)
    return tuple(
        LSTMState(*(jnp.asarray(rng.normal(size=(*batch, HIDDEN)) * s, jnp.float32) for s in (0.5, 1.5)))
        for _ in params
    )


class Oracle(cells.Oracle):
    """The cell of the paper."""

    def __init__(self, params, quant):
        super().__init__(quant)
        self.params = [{name: np.float64(value) for name, value in layer.items()} for layer in params]

    def cell(self, layer, h, c, x):
        quant, hidden_size = self.quant, len(h)
        w_f, w_i, w_c, w_o = np.split(layer["w"], 4, axis=1)
        b_f, b_i, b_c, b_o = np.split(layer["b"], 4)

        def affine(w, b):
            if quant.ranges == "joint":
                return self.q(np.concatenate([h, x]), quant.activations) @ self.weights(w) + b
            from_h = self.q(h, quant.activations) @ self.weights(w[:hidden_size])
            return from_h + self.q(x, quant.activations) @ self.weights(w[hidden_size:]) + b

        def sigmoid(z):
            return 1 / (1 + np.exp(-z))

        f, i, o = (
            self.q(sigmoid(affine(w, b)), quant.gates) for w, b in ((w_f, b_f), (w_i, b_i), (w_o, b_o))
        )
        new_c = f * self.q(c, quant.cell) + i * self.q(np.tanh(affine(w_c, b_c)), quant.gates)
        return LSTMState(o * self.q(np.tanh(new_c), quant.gates), new_c)

    def step(self, carry, x):
        """The next carry of one example."""
        new = []
        for layer, (h, c) in zip(self.params, carry):
            new.append(self.cell(layer, h, c, x))
            x = new[-1].h
        return tuple(new)

    def zeros(self):
        return tuple(LSTMState(*np.zeros((2, len(layer["b"]) // 4))) for layer in self.params)


CASES = [(1, quant) for quant in (FLOAT, PAPER8, PAPER4, SPLIT8, SPLIT4, CHANNEL8, CHANNEL4, ALL16)]
CASES += [(1, quant) for quant in (*cells.ONE_EACH, *cells.SOME_RANGES)]
CASES += [(2, FLOAT), (2, PAPER8), (2, CHANNEL8)]


@pytest.mark.parametrize(("layers", "quant"), CASES, ids=str)
def test_each_step_is_the_oracles(layers, quant):
    oracle = Oracle(parameters(layers), quant)
    cells.assert_steps_are_the_oracles(fast_step, parameters(layers), oracle, [oracle.zeros()] * 4)


INTEGER = [(QuantConfig.integer(8), 1), (QuantConfig.integer(3, activations=5), 2)]
CELL_EXPONENT = 10


def with_exponents(params, quant):
    """`params`; in the integer-only scheme with the exponents of the inputs and the cell of each layer."""
    if quant.scheme != "integer":
        return params
    first, others = quant.activations - 3, quant.activations - 1
    return tuple(
        {**layer, "exponents": jnp.array([others if index else first, CELL_EXPONENT])}
        for index, layer in enumerate(params)
    )


def on_grids(carry, quant):
    """`carry`; in the integer-only scheme rounded to codes."""
    if quant.scheme != "integer":
        return carry
    half = 2 ** (quant.activations - 1)
    codes = [(np.rint(h * half), np.rint(c * 2**CELL_EXPONENT)) for h, c in carry]
    return tuple(
        LSTMState(np.clip(h, -half, half - 1) / half, jnp.asarray(c / 2**CELL_EXPONENT)) for h, c in codes
    )


SCHEMES = pytest.mark.parametrize(("quant", "layers"), [(FLOAT, 1), (PAPER8, 1), INTEGER[1]], ids=str)


@SCHEMES
def test_a_stream_is_its_clip_to_the_bit(quant, layers):
    params, x = with_exponents(parameters(layers), quant), sequence(*BATCH)
    start = on_grids(a_carry(params, 4), quant)
    whole, last = fast_scan(params, x, quant=quant, carry=start)
    for cuts in ([1, 3], [3, 4], [3, 5]):  # pieces of 1, 2 and 3 steps
        carry, pieces = start, []
        for piece in np.split(np.asarray(x), cuts, axis=1):
            outputs, carry = fast_scan(params, jnp.asarray(piece), quant=quant, carry=carry)
            pieces.append(outputs)
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
        assert_equal(carry, last)


def test_an_empty_piece_of_a_stream_changes_nothing():
    params = parameters(2)
    carry = a_carry(params, 2)
    outputs, after = lstm_scan(params, sequence(2, 0), carry=carry)
    assert outputs.shape == (2, 0, HIDDEN)
    assert_equal(after, carry)


@pytest.mark.parametrize("quant", SOME, ids=str)
def test_lengths_are_the_shorter_sequences_alone(quant):
    params, x, lengths = parameters(), sequence(*BATCH), [100, 4, 1, 0]
    start = a_carry(params, 4)
    outputs, carry = fast_scan(params, x, quant=quant, carry=start, lengths=jnp.array(lengths))
    for index, length in enumerate(lengths):
        last = start
        for t in range(min(length, x.shape[1])):
            last = fast_step(params, last, x[:, t], quant=quant)
            np.testing.assert_allclose(outputs[index, t], last[-1].h[index], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(outputs[index, length:], 0)
        got, alone = (jax.tree.map(lambda leaf: leaf[index], each) for each in (carry, last))
        assert_close(got, alone, rtol=0, atol=1e-5)


@SCHEMES
def test_padding_changes_no_bit_of_outputs_carry_and_gradients(quant, layers):
    params, x, lengths = parameters(layers), sequence(3, 4), jnp.array([4, 3, 1])

    @jax.jit
    def everything(params, x):
        def loss(params, x):
            outputs, carry = lstm_scan(with_exponents(params, quant), x, quant=quant, lengths=lengths)
            return (outputs**2).sum() + (carry[0].c ** 2).sum(), (outputs, carry)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    beyond = (jnp.arange(4)[None] >= lengths[:, None])[..., None]
    expected = everything(params, jnp.where(beyond, 0, x))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected[1]))
    for padding in (np.nan, np.inf, 1e30, 5.0):
        got = everything(params, jnp.where(beyond, padding, x))
        assert_equal(got, expected)
        assert np.isfinite(ravel_pytree(got)[0]).all()
        np.testing.assert_array_equal(np.where(beyond, got[1][1], 0), 0)  # nothing flows into padding


fast_init = jax.jit(lambda key: lstm_init(key, 40, 48, 2, steps=500))


def test_chrono_initialization():
    inputs, hidden_size, steps = 40, 48, 500
    params = fast_init(jax.random.key(3))
    for index, layer in enumerate(params):
        rows = hidden_size + (hidden_size if index else inputs)
        assert layer["w"].shape == (rows, 4 * hidden_size)
        forget, inward, candidate, output = np.split(np.asarray(layer["b"]), 4)
        assert 0 <= forget.min() < forget.max() <= np.log(steps - 1)
        np.testing.assert_array_equal(inward, -forget)
        np.testing.assert_array_equal(candidate, output)
        np.testing.assert_array_equal(output, 0)
        # The exponential is uniform: mean (1 + steps - 1) / 2, here within 3 standard errors.
        assert abs(np.exp(forget).mean() - steps / 2) < 3 * steps / np.sqrt(12 * hidden_size)
        gates = np.split(np.asarray(layer["w"][:hidden_size]), 4, axis=1)
        for w in gates:
            np.testing.assert_allclose(w.T @ w, np.eye(hidden_size), atol=1e-4)
        assert all(np.abs(a - b).max() > 0.1 for a, b in combinations(gates, 2))
        w_x = np.asarray(layer["w"][hidden_size:])
        np.testing.assert_allclose(w_x.var(), 1 / (rows - hidden_size), rtol=0.05)
        np.testing.assert_allclose(w_x.mean(), 0, atol=0.01)


def test_initial_parameters_depend_on_key_and_layer():
    first, again, other = (fast_init(jax.random.key(seed)) for seed in (0, 0, 1))
    assert_equal(first, again)
    for part in ("w", "b"):
        assert np.abs(first[0][part] - other[0][part]).max() > 0.1
        assert np.abs(first[0][part][:48] - first[1][part][:48]).max() > 0.1


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_sequences_have_no_forget_bias(steps):
    (layer,) = lstm_init(jax.random.key(0), 2, 3, steps=steps)
    np.testing.assert_array_equal(layer["b"], 0)


def reference_scan(params, x, quant, carry, lengths):
    """The layers in plain autodiff, with products of floats."""
    q = straight_through if quant.gradient == "identity" else chained
    shared = 0 if quant.ranges == "channel" else (0, 1)
    parts = [slice(None)] if quant.ranges == "joint" else [slice(0, HIDDEN), slice(HIDDEN, None)]
    x, finals = jnp.moveaxis(x, 1, 0), []
    for layer, start in zip(params, carry):

        def body(carry, inputs, layer=layer):
            (h, c), (x, on) = carry, inputs
            u = jnp.concatenate([h, x], axis=1)
            f, i, candidate, o = (
                sum(q(u[:, part], quant.activations) @ q(w[part], quant.weights, shared) for part in parts)
                + b[None]
                for w, b in zip(jnp.split(layer["w"], 4, axis=1), jnp.split(layer["b"], 4))
            )
            f, i, o = (q(jax.nn.sigmoid(z), quant.gates) for z in (f, i, o))
            c = f * q(c, quant.cell) + i * q(jnp.tanh(candidate), quant.gates)
            h = o * q(jnp.tanh(c), quant.gates)
            return jax.tree.map(partial(jnp.where, on), LSTMState(h, c), carry), jnp.where(on, h, 0)

        on = (np.arange(len(x))[:, None] < lengths)[..., None]
        final, x = jax.lax.scan(body, start, (x, on))
        finals.append(final)
    return jnp.moveaxis(x, 0, 1), tuple(finals)


def chained(v, bits, axis=-1):
    """Eq. 3 with the identity through the rounding alone."""
    if bits == 32:
        return v
    low = v.min(axis=axis, keepdims=True)
    scale = (v.max(axis=axis, keepdims=True) - low) / (2**bits - 1)
    position = (v - low) / jnp.where(scale > 0, scale, 1)
    return scale * (position + jax.lax.stop_gradient(jnp.round(position) - position)) + low


def loop_of_steps(params, x, quant, carry, lengths):
    on = (np.arange(x.shape[1])[:, None] < lengths)[..., None]

    def body(carry, inputs):
        new = lstm_step(params, carry, inputs[0], quant=quant)
        carry = jax.tree.map(partial(jnp.where, inputs[1]), new, carry)
        return carry, jnp.where(inputs[1], carry[-1].h, 0)

    carry, outputs = jax.lax.scan(body, carry, (jnp.moveaxis(x, 1, 0), on))
    return jnp.moveaxis(outputs, 0, 1), carry


def library_scan(params, x, quant, carry, lengths):
    return lstm_scan(params, x, quant=quant, carry=carry, lengths=jnp.asarray(lengths))


REFERENCES = [(reference_scan, FLOAT, 2)]
REFERENCES += [(reference_scan, quant, 1) for quant in (PAPER8, SPLIT4, CHANNEL4)]
REFERENCES += [(reference_scan, replace(quant, gradient="chain"), 1) for quant in (PAPER4, CHANNEL4)]
REFERENCES += [(loop_of_steps, PAPER8, 2)]


@pytest.mark.parametrize(("reference", "quant", "layers"), REFERENCES)
def test_gradient_is_straight_through_and_that_of_the_loop_of_steps(reference, quant, layers):
    params, x, lengths = parameters(layers), sequence(3, 5), np.array([5, 2, 4])

    def loss(run, params, x, carry):
        outputs, final = run(params, x, quant, carry, lengths)
        return (outputs**2).sum() + sum((leaf**3).sum() for leaf in jax.tree.leaves(final))

    got, expected = (
        jax.jit(jax.grad(partial(loss, run), argnums=(0, 1, 2)))(params, x, a_carry(params, 3))
        for run in (library_scan, reference)
    )
    # Each of two layers adds to the difference between orders of summation.
    assert_close(got, expected, rtol=1e-4, atol=1e-4 if reference is reference_scan else 2e-4)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0)])
def test_the_gradient_of_no_steps_or_clips_is_zero(shape):
    gradient = jax.jit(jax.grad(lambda params: lstm_scan(params, sequence(*shape), quant=PAPER8)[0].sum()))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient(parameters())))


@pytest.mark.parametrize(("quant", "layers"), [(FLOAT, 2), (PAPER8, 1), (SPLIT4, 1)], ids=str)
def test_forward_mode_is_the_transpose_of_reverse_mode(quant, layers):
    params, x = parameters(layers), sequence(3, 4)
    rng, run = np.random.default_rng(7), partial(lstm_scan, quant=quant)

    def like(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), tree)

    moved = like((params, x))
    y, slope = jax.jit(lambda at, by: jax.jvp(run, at, by))((params, x), moved)
    pulled = like(y)
    back = jax.jit(lambda at, by: jax.vjp(run, *at)[1](by))((params, x), pulled)
    forward, backward = (
        sum(float((a * b).sum()) for a, b in zip(*map(jax.tree.leaves, pair)))
        for pair in ((slope, pulled), (moved, back))
    )
    assert forward == pytest.approx(backward, rel=1e-4)


def outputs(params, x):
    return lstm_scan(params, x, quant=PAPER8)[0]


def outputs_and_gradient(transform):
    y, pullback = jax.vjp(transform(outputs, (None, 0)), parameters(), sequence(*BATCH))
    return y, pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


plain = cache(lambda: outputs_and_gradient(jitted))


@pytest.mark.parametrize("transform", [mapped, scanned, remat, sharded])
def test_transforms_give_the_same_outputs_and_gradient(transform):
    assert_close(outputs_and_gradient(transform), plain(), rtol=1e-4, atol=2e-5)


def test_neither_the_gradient_nor_jit_changes_the_outputs():
    # Quantization after training is the same call on other parameters: no state, no flag, no statistics.
    params, x = parameters(), sequence(*BATCH)
    np.testing.assert_allclose(plain()[0], fast_scan(params, x, quant=PAPER8)[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(plain()[0], outputs(params, x), rtol=0, atol=1e-5)


def test_data_parallelism_by_hand():
    # Replicated parameters, a sharded batch with lengths, and the gradient summed over devices.
    params, x, lengths = parameters(), sequence(4, 5), jnp.array([5, 2, 4, 1])

    def loss(params, x, lengths):
        return (lstm_scan(params, x, quant=PAPER8, lengths=lengths)[0] ** 2).sum()

    got = data_parallel_gradient(loss, (None, 0, 0))(params, x, lengths)
    assert_close(got, jax.jit(jax.grad(loss))(params, x, lengths), rtol=1e-4, atol=1e-5)


def test_bfloat16_parameters_run():
    params, x = parameters(dtype=jnp.bfloat16), sequence(2, 5)
    same = jax.tree.map(lambda a: a.astype(jnp.float32), params)

    @jax.jit
    def both(params):
        def loss(params):
            outputs = lstm_scan(params, x, quant=PAPER8)[0]
            return outputs.astype(jnp.float32).sum(), outputs

        return jax.grad(loss, has_aux=True)(params)

    (gradient, outputs), (expected_gradient, expected) = both(params), both(same)
    assert outputs.dtype == jnp.bfloat16
    # Steps of bfloat16 here, or one of a quantizer that they push over a tie.
    np.testing.assert_allclose(np.float32(outputs), expected, rtol=0, atol=0.05)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient)):
        assert a.dtype == jnp.bfloat16
        assert np.linalg.norm(np.float32(a) - b) < 0.1 * np.linalg.norm(b)


# The integer-only scheme: no code depends on how a sequence is run.


def assert_on_grids(carry, quant):
    half = 2 ** (quant.activations - 1)
    for h, c in carry:
        for codes, low in ((np.asarray(h) * half, -half), (np.asarray(c) * 2**CELL_EXPONENT, -(2**15))):
            np.testing.assert_array_equal(codes, np.rint(codes))
            assert low <= codes.min() <= codes.max() <= -low - 1


@pytest.mark.parametrize(("quant", "layers"), INTEGER, ids=["8 bits", "3 bits"])
def test_integer_scan_is_the_loop_of_steps_to_the_bit(quant, layers):
    params, x, lengths = with_exponents(parameters(layers), quant), sequence(*BATCH), np.array([6, 4, 1, 0])
    start = carry = on_grids(a_carry(params, 4), quant)
    outputs, last = fast_scan(params, x, quant=quant, carry=start, lengths=jnp.asarray(lengths))
    for t in range(x.shape[1]):
        on = (t < lengths)[:, None]
        carry = jax.tree.map(partial(np.where, on), fast_step(params, carry, x[:, t], quant=quant), carry)
        np.testing.assert_array_equal(outputs[:, t], np.where(on, carry[-1].h, 0))
    assert_equal(last, carry)
    assert_on_grids(last, quant)
    assert np.unique(outputs).size > 10


def test_codes_of_a_clip_do_not_depend_on_its_batch():
    quant, layers = INTEGER[1]
    params, x = with_exponents(parameters(layers), quant), sequence(*BATCH)
    start = on_grids(a_carry(params, 4), quant)
    whole, _ = fast_scan(params, x, quant=quant, carry=start)
    alone, _ = fast_scan(params, x[2:3], quant=quant, carry=jax.tree.map(lambda part: part[2:3], start))
    np.testing.assert_array_equal(alone, whole[2:3])
    mapped = jax.jit(jax.vmap(lambda x, carry: lstm_scan(params, x, quant=quant, carry=carry)[0]))
    np.testing.assert_array_equal(mapped(x, start), whole)


ONE, ODD = parameters(), (*parameters(hidden_size=4), *parameters(inputs=5))
ZEROS, WRONG_W = lstm_zeros(ONE, (2,)), "expected w of shape"


@pytest.mark.parametrize(
    ("params", "carry", "inputs", "message"),
    [
        (ONE, None, 5, rf"layer 0: {WRONG_W} \(11, 24\) for 5 inputs and hidden_size 6, got \(9, 24\)"),
        (ODD, None, 3, rf"layer 1: {WRONG_W} \(10, 24\) for 4 inputs and hidden_size 6, got \(11, 24\)"),
        (ONE, (), 3, "carry: expected a state for each of 1 layers, got 0"),
        (ONE, ZEROS * 2, 3, "carry: expected a state for each of 1 layers, got 2"),
        (ONE, lstm_zeros(ONE, (3,)), 3, r"layer 0: h: expected \(2, 6\), got \(3, 6\)"),
        (ONE, lstm_zeros(ONE), 3, r"layer 0: h: expected \(2, 6\), got \(6,\)"),
        (ONE, (ZEROS[0]._replace(c=jnp.ones((2, 7))),), 3, r"layer 0: c: expected \(2, 6\), got \(2, 7\)"),
    ],
)
def test_parameters_and_states_that_do_not_fit_are_refused(params, carry, inputs, message):
    x = jnp.ones((2, 4, inputs))
    for call in (partial(lstm_scan, params, x, carry=carry), partial(lstm_step, params, carry, x[:, 0])):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 4)])
def test_lengths_that_do_not_fit_are_refused(shape, monkeypatch):
    # The library's own error, without the annotations that only tests check.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    message = r"lengths: expected shape \(2,\), one for each sequence, got " + re.escape(str(shape))
    with pytest.raises(ValueError, match=message):
        lstm_scan(parameters(), sequence(2, 4), lengths=jnp.ones(shape, jnp.int32))
