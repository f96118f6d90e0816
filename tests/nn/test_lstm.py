"""The quantized LSTM (eq. 5 and 6) against a float64 loop, and its invariants."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from qkd_jax.config import QuantConfig
from qkd_jax.nn.lstm import LSTMState, lstm_init, lstm_scan, lstm_step, lstm_zeros
from qkd_jax.quant.fake_quant import fake_quant
from tests.oracles import (
    data_parallel_gradient,
    jitted,
    mapped,
    remat,
    scanned,
    sharded,
    straight_through,
)

FLOAT = QuantConfig()
PAPER8, PAPER4 = QuantConfig.paper(8), QuantConfig.paper(4)
SPLIT8 = QuantConfig(weights=8, activations=8, gates=8, cell=16, ranges="split")
SPLIT4 = QuantConfig(weights=4, activations=4, gates=4, cell=16, ranges="split")
CHANNEL8 = QuantConfig(weights=8, activations=8, gates=8, cell=16, ranges="channel")
CHANNEL4 = QuantConfig(weights=4, activations=4, gates=4, cell=16, ranges="channel")
ALL16 = QuantConfig(weights=16, activations=16, gates=16, cell=16)
ONE_EACH = [QuantConfig(**{part: 4}) for part in ("weights", "activations", "gates", "cell")]
SOME = [FLOAT, PAPER8, SPLIT4]
INPUTS, HIDDEN, BATCH = 3, 6, (4, 6)  # the sizes that most tests share, compiled once

# Compiled whole, which is faster here than operation by operation.
fast_scan = jax.jit(lstm_scan, static_argnames="quant")
fast_step = jax.jit(lstm_step, static_argnames="quant")


def assert_close(got, expected, **tolerances):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerances), got, expected)


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


def sequence(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, INPUTS)), jnp.float32)


def a_carry(params, *batch, seed=2):
    rng = np.random.default_rng(seed)
    return tuple(
        LSTMState(*(jnp.asarray(rng.normal(size=(*batch, HIDDEN)) * s, jnp.float32) for s in (0.5, 1.5)))
        for _ in params
    )


class Oracle:
    """The cell of the paper in float64, which records whether a quantizer came near a tie."""

    def __init__(self, params, quant):
        self.params = [{name: np.float64(value) for name, value in layer.items()} for layer in params]
        self.quant = quant

    def q(self, v, bits):
        """Eq. 3 on the whole of v."""
        if bits == 32 or np.ptp(v) == 0:
            return v
        scale = np.ptp(v) / (2**bits - 1)
        position = (v - v.min()) / scale
        # float32 may shift a position by some 3e-7 of the values.
        self.clear &= bool((np.abs(position % 1 - 0.5) > 3e-7 / scale).all())
        return np.rint(position) * scale + v.min()

    def weights(self, w):
        """W_g, W_gh or W_gx, quantized as a whole or per column."""
        if self.quant.ranges == "channel":
            return np.stack([self.q(column, self.quant.weights) for column in w.T], axis=1)
        return self.q(w, self.quant.weights)

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

        f = self.q(sigmoid(affine(w_f, b_f)), quant.gates)
        i = self.q(sigmoid(affine(w_i, b_i)), quant.gates)
        o = self.q(sigmoid(affine(w_o, b_o)), quant.gates)
        candidate = self.q(np.tanh(affine(w_c, b_c)), quant.gates)
        new_c = f * self.q(c, quant.cell) + i * candidate
        return o * self.q(np.tanh(new_c), quant.gates), new_c

    def step(self, carry, x):
        """The next carry of one example: a list of (h, c)."""
        self.clear, new = True, []
        for layer, (h, c) in zip(self.params, carry):
            new.append(self.cell(layer, h, c, x))
            x = new[-1][0]
        return new

    def zeros(self):
        return [(np.zeros(len(layer["b"]) // 4),) * 2 for layer in self.params]

    def outputs(self, x):
        """Top outputs [time, hidden_size] of one sequence from zeros."""
        carry, outputs = self.zeros(), []
        for x_t in np.float64(x):
            carry = self.step(carry, x_t)
            outputs.append(carry[-1][0])
        return np.stack(outputs)


CASES = [(1, quant) for quant in (FLOAT, PAPER8, PAPER4, SPLIT8, SPLIT4, CHANNEL8, CHANNEL4)]
CASES += [(1, quant) for quant in (ALL16, *ONE_EACH)]
CASES += [(1, QuantConfig(weights=4, ranges=ranges)) for ranges in ("split", "channel")]
CASES += [(2, FLOAT), (2, PAPER8), (2, CHANNEL8)]


@pytest.mark.parametrize(("layers", "quant"), CASES, ids=str)
def test_each_step_is_the_oracles(layers, quant):
    # Each step starts from the oracle's state, so that a flipped tie does not grow over the steps.
    params, oracle, x = parameters(layers), Oracle(parameters(layers), quant), sequence(*BATCH)
    tolerance = 1e-4 if quant == ALL16 else 1e-5
    compared, states = 0, [oracle.zeros() for _ in x]
    for t in range(x.shape[1]):
        # The oracle's states in float32, so that both quantize the very same values.
        carry = tuple(
            LSTMState(
                *(jnp.asarray([state[layer][part] for state in states], jnp.float32) for part in (0, 1))
            )
            for layer in range(layers)
        )
        new = fast_step(params, carry, x[:, t], quant=quant)
        for index in range(len(x)):
            given = [(np.float64(h[index]), np.float64(c[index])) for h, c in carry]
            states[index] = oracle.step(given, np.float64(x[index, t]))
            # At a tie, codes may differ by one; with 16 bits ties are frequent, but codes are small.
            if oracle.clear or quant == ALL16:
                compared += 1
                for got, expected in zip(new, states[index]):
                    np.testing.assert_allclose(got.h[index], expected[0], rtol=0, atol=tolerance)
                    np.testing.assert_allclose(got.c[index], expected[1], rtol=0, atol=tolerance)
    assert compared >= 5


@pytest.mark.parametrize("layers", [1, 2])
def test_float_is_the_oracles_over_a_whole_sequence(layers):
    params, x = parameters(layers), sequence(2, 40)
    outputs, carry = fast_scan(params, x)
    for index in range(2):
        expected = Oracle(params, FLOAT).outputs(x[index])
        np.testing.assert_allclose(outputs[index], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(carry[-1].h, outputs[:, -1])


def test_weights_alone_are_a_float_lstm_on_recovered_weights():
    (layer,), x = parameters(), sequence(4)
    gates = [fake_quant(w, 4, axis=None) for w in jnp.split(layer["w"], 4, axis=1)]
    recovered = ({"w": jnp.concatenate(gates, axis=1), "b": layer["b"]},)
    carry = a_carry(recovered, 4)
    quantized = fast_step((layer,), carry, x, quant=QuantConfig(weights=4))
    for got, expected in zip(quantized[0], fast_step(recovered, carry, x, quant=FLOAT)[0]):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_rows_are_h_then_x_and_columns_f_i_candidate_o():
    # A hidden size of 1, one input, by hand: c' = f c + i tanh(z_c), h' = o tanh(c').
    z = dict(f=0.3, i=-0.4, c=0.7, o=1.1)
    b = jnp.array(list(z.values()))
    w = jnp.array([[0.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.25]])  # h to the candidate, x to the output gate
    h, c, x = 0.2, -0.6, 0.8
    state = LSTMState(jnp.array([h]), jnp.array([c]))
    (new,) = lstm_step(({"w": w, "b": b},), (state,), jnp.array([x]))
    sigmoid = {gate: 1 / (1 + np.exp(-value)) for gate, value in z.items()}
    expected = sigmoid["f"] * c + sigmoid["i"] * np.tanh(z["c"] + 0.5 * h)
    np.testing.assert_allclose(new.c, [expected], rtol=1e-6)
    np.testing.assert_allclose(new.h, [np.tanh(expected) / (1 + np.exp(-z["o"] - 0.25 * x))], rtol=1e-6)


@pytest.mark.parametrize("quant", [PAPER8, SPLIT4], ids=str)
def test_biases_and_the_carry_are_not_quantized(quant):
    # c' is c, not rounded to a coarse scale, where f is 1 and i is 0.
    params = ({"w": jnp.zeros((4 + INPUTS, 16)), "b": jnp.repeat(jnp.array([40.0, -90.0, 0.0, 0.0]), 4)},)
    c = jnp.array([[0.1, 0.123456, 0.7, -0.9]])
    (new,) = fast_step(params, (LSTMState(jnp.zeros((1, 4)), c),), sequence(1), quant=quant)
    np.testing.assert_allclose(new.c, c, rtol=0, atol=1.6 / 65535)  # half a step of 16 bits


# Invariants: it does not matter how a sequence is run.


@pytest.mark.parametrize("quant", [FLOAT, PAPER8], ids=str)
def test_a_stream_is_its_clip_to_the_bit(quant):
    params, x = parameters(), sequence(*BATCH)
    start = a_carry(params, 4)
    whole, last = fast_scan(params, x, quant=quant, carry=start)
    for cuts in ([1, 3], [3, 4], [3, 5]):  # pieces of 1, 2 and 3 steps
        carry, pieces = start, []
        for piece in np.split(np.asarray(x), cuts, axis=1):
            outputs, carry = fast_scan(params, jnp.asarray(piece), quant=quant, carry=carry)
            pieces.append(outputs)
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
        jax.tree.map(np.testing.assert_array_equal, carry, last)


def test_an_empty_piece_of_a_stream_changes_nothing():
    params = parameters(2)
    carry = a_carry(params, 2)
    outputs, after = lstm_scan(params, sequence(2, 0), carry=carry)
    assert outputs.shape == (2, 0, HIDDEN)
    jax.tree.map(np.testing.assert_array_equal, after, carry)


@pytest.mark.parametrize("quant", SOME, ids=str)
def test_a_batch_of_one_steps_like_a_batch_of_many(quant):
    # Within 1e-5 from equal states: the sums of another batch size may run in another order.
    params, x = parameters(), sequence(4)
    carry = a_carry(params, 4)
    many = fast_step(params, carry, x, quant=quant)
    for index in range(4):
        own = tuple(LSTMState(*(part[index][None] for part in state)) for state in carry)
        alone = fast_step(params, own, x[index][None], quant=quant)
        for got, expected in zip(jax.tree.leaves(alone), jax.tree.leaves(many)):
            np.testing.assert_allclose(got[0], expected[index], rtol=0, atol=1e-5)


# Lengths.


@pytest.mark.parametrize("quant", SOME, ids=str)
def test_lengths_are_the_shorter_sequences_alone(quant):
    params, x, lengths = parameters(), sequence(*BATCH), [6, 4, 1, 0]
    start = a_carry(params, 4)
    outputs, carry = fast_scan(params, x, quant=quant, carry=start, lengths=jnp.array(lengths))
    for index, length in enumerate(lengths):
        last = start
        for t in range(length):
            last = fast_step(params, last, x[:, t], quant=quant)
            np.testing.assert_allclose(outputs[index, t], last[-1].h[index], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(outputs[index, length:], 0)
        for got, alone in zip(jax.tree.leaves(carry), jax.tree.leaves(last)):
            np.testing.assert_allclose(got[index], alone[index], rtol=0, atol=1e-5)


@pytest.mark.parametrize("quant", [FLOAT, PAPER8], ids=str)
def test_padding_changes_no_bit_of_outputs_carry_and_gradients(quant):
    params, x, lengths = parameters(), sequence(3, 4), jnp.array([4, 3, 1])

    @jax.jit
    def everything(params, x):
        def loss(params, x):
            outputs, carry = lstm_scan(params, x, quant=quant, lengths=lengths)
            return (outputs**2).sum() + (carry[0].c ** 2).sum(), (outputs, carry)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    beyond = (jnp.arange(4)[None] >= lengths[:, None])[..., None]
    expected = everything(params, jnp.where(beyond, 0, x))
    for padding in (np.nan, np.inf, 1e30, 5.0):
        got = everything(params, jnp.where(beyond, padding, x))
        jax.tree.map(np.testing.assert_array_equal, got, expected)
        assert np.isfinite(ravel_pytree(got)[0]).all()
        np.testing.assert_array_equal(np.where(beyond, got[1][1], 0), 0)  # nothing flows into padding


def test_gradient_with_lengths_is_that_of_the_shorter_sequences():
    params, x = parameters(), sequence(*BATCH)

    def loss(params, x, lengths):
        outputs, (carry,) = lstm_scan(params, x, lengths=lengths)
        return (outputs**2).sum() + (carry.h + carry.c).sum()

    gradient = jax.jit(jax.grad(loss))
    expected = gradient(params, x[:, :2], None)
    assert_close(gradient(params, x, jnp.full(4, 2)), expected, rtol=1e-5, atol=1e-5)


def test_full_lengths_are_none():
    params, x = parameters(), sequence(*BATCH)
    padded = fast_scan(params, x, quant=FLOAT, carry=a_carry(params, 4), lengths=jnp.array([6, 6, 7, 100]))
    whole = fast_scan(params, x, quant=FLOAT, carry=a_carry(params, 4))
    assert_close(padded, whole, rtol=0, atol=1e-6)


# Initialization.


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
        np.testing.assert_array_equal(candidate, 0)
        np.testing.assert_array_equal(output, 0)
        # The exponential is uniform: mean (1 + steps - 1) / 2, here within 3 standard errors.
        assert abs(np.exp(forget).mean() - steps / 2) < 3 * steps / np.sqrt(12 * hidden_size)
        gates = np.split(np.asarray(layer["w"][:hidden_size]), 4, axis=1)
        for w in gates:
            np.testing.assert_allclose(w.T @ w, np.eye(hidden_size), atol=1e-4)
        for a in range(4):
            for b in range(a):
                assert np.abs(gates[a] - gates[b]).max() > 0.1
        w_x = np.asarray(layer["w"][hidden_size:])
        np.testing.assert_allclose(w_x.var(), 1 / (rows - hidden_size), rtol=0.05)
        np.testing.assert_allclose(w_x.mean(), 0, atol=0.01)


def test_initial_parameters_depend_on_key_and_layer():
    first, again, other = (fast_init(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for part in ("w", "b"):
        assert np.abs(first[0][part] - other[0][part]).max() > 0.1
        assert np.abs(first[0][part][:48] - first[1][part][:48]).max() > 0.1


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_sequences_have_no_forget_bias(steps):
    (layer,) = lstm_init(jax.random.key(0), 2, 3, steps=steps)
    np.testing.assert_array_equal(layer["b"], 0)


# Gradients.


def test_float_gradient_is_that_of_finite_differences():
    params, x = parameters(), sequence(1, 5)
    weight = np.random.default_rng(5).normal(size=(5, HIDDEN))

    @jax.jit
    def gradient(params, x):
        return jax.grad(lambda p, x: (lstm_scan(p, x)[0][0] * weight).sum(), argnums=(0, 1))(params, x)

    def loss(w, b, x):
        return (Oracle(({"w": w, "b": b},), FLOAT).outputs(x) * weight).sum()

    at = [np.float64(params[0]["w"]), np.float64(params[0]["b"]), np.float64(x[0])]
    ((layer,), d_x) = gradient(params, x)
    for index, got in enumerate((layer["w"], layer["b"], d_x[0])):
        expected = np.zeros(got.shape)
        for place in np.ndindex(got.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [part.copy() for part in at]
                moved[index][place] += step
                sides.append(loss(*moved))
            expected[place] = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def reference_scan(params, x, quant, carry):
    """One layer in plain autodiff, with products of floats."""
    q = straight_through
    (layer,), parts = params, [slice(0, HIDDEN), slice(HIDDEN, None)]
    if quant.ranges == "joint":
        parts = [slice(0, None)]
    shared = 0 if quant.ranges == "channel" else (0, 1)

    def body(carry, x):
        h, c = carry
        u = jnp.concatenate([h, x], axis=1)
        f, i, candidate, o = (
            sum(q(u[:, part], quant.activations) @ q(w[part], quant.weights, shared) for part in parts)
            + b[None]
            for w, b in zip(jnp.split(layer["w"], 4, axis=1), jnp.split(layer["b"], 4))
        )
        f, i, o = (q(jax.nn.sigmoid(z), quant.gates) for z in (f, i, o))
        c = f * q(c, quant.cell) + i * q(jnp.tanh(candidate), quant.gates)
        h = o * q(jnp.tanh(c), quant.gates)
        return (h, c), h

    last, outputs = jax.lax.scan(body, carry, jnp.moveaxis(x, 1, 0))
    return jnp.moveaxis(outputs, 0, 1), last


@pytest.mark.parametrize("quant", [PAPER8, SPLIT4, CHANNEL4], ids=str)
def test_quantized_gradient_is_straight_through(quant):
    params, x = parameters(), sequence(3, 4)
    carry = tuple(a_carry(params, 3)[0])

    def library(params, x, quant, carry):
        outputs, (last,) = lstm_scan(params, x, quant=quant, carry=(LSTMState(*carry),))
        return outputs, last

    def loss(scan, params, x, carry):
        outputs, last = scan(params, x, quant, carry)
        return (outputs**2).sum() + (last[1] ** 3).sum()

    got, expected = (
        jax.jit(jax.grad(partial(loss, scan), argnums=(0, 1, 2)))(params, x, carry)
        for scan in (library, reference_scan)
    )
    assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quant", SOME, ids=str)
def test_gradient_is_that_of_the_loop_of_steps(quant):
    params, x, lengths = parameters(layers=2), sequence(3, 5), np.array([5, 2, 4])
    carry = a_carry(params, 3)

    def by_steps(params, x, carry):
        def body(carry, inputs):
            x_t, on = inputs
            carry = jax.tree.map(partial(jnp.where, on), lstm_step(params, carry, x_t, quant=quant), carry)
            return carry, jnp.where(on, carry[-1].h, 0)

        on = (np.arange(5)[:, None] < lengths)[..., None]
        carry, outputs = jax.lax.scan(body, carry, (jnp.moveaxis(x, 1, 0), on))
        return jnp.moveaxis(outputs, 0, 1), carry

    def by_scan(params, x, carry):
        return lstm_scan(params, x, quant=quant, carry=carry, lengths=jnp.asarray(lengths))

    def loss(run, *arguments):
        outputs, final = run(*arguments)
        return (outputs**2).sum() + sum((leaf**3).sum() for leaf in jax.tree.leaves(final))

    got, expected = (
        jax.jit(jax.grad(partial(loss, run), argnums=(0, 1, 2)))(params, x, carry)
        for run in (by_scan, by_steps)
    )
    assert_close(got, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0)])
def test_the_gradient_of_no_steps_or_clips_is_zero(shape):
    gradient = jax.jit(jax.grad(lambda params: lstm_scan(params, sequence(*shape), quant=PAPER8)[0].sum()))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient(parameters())))


@pytest.mark.parametrize(("quant", "layers"), [(FLOAT, 2), (PAPER8, 1), (SPLIT4, 1)], ids=str)
def test_forward_mode_is_the_transpose_of_reverse_mode(quant, layers):
    params, x = parameters(layers), sequence(3, 4)
    rng = np.random.default_rng(7)

    def like(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), tree)

    def run(params, x):
        return lstm_scan(params, x, quant=quant)

    moved = like((params, x))
    y, slope = jax.jit(lambda at, by: jax.jvp(run, at, by))((params, x), moved)
    pulled = like(y)
    back = jax.jit(lambda at, by: jax.vjp(run, *at)[1](by))((params, x), pulled)
    forward, backward = (
        sum(float((a * b).sum()) for a, b in zip(*map(jax.tree.leaves, pair)))
        for pair in ((slope, pulled), (moved, back))
    )
    assert forward == pytest.approx(backward, rel=1e-4)


# Transforms.


def outputs(params, x):
    return lstm_scan(params, x, quant=PAPER8)[0]


def outputs_and_gradient(transform):
    y, pullback = jax.vjp(transform(outputs, (None, 0)), parameters(), sequence(*BATCH))
    return y, pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


plain = cache(lambda: outputs_and_gradient(jitted))


@pytest.mark.parametrize("transform", [mapped, scanned, remat, sharded])
def test_transforms_give_the_same_outputs_and_gradient(transform):
    assert_close(outputs_and_gradient(transform), plain(), rtol=1e-4, atol=2e-5)


def test_training_runs_the_function_that_quantizing_afterwards_runs():
    # Post-mortem quantization is the same call on other parameters: no state, no flag, no statistics.
    # (plain() is the forward pass of a gradient.)
    afterwards = fast_scan(parameters(), sequence(*BATCH), quant=PAPER8)[0]
    np.testing.assert_allclose(plain()[0], afterwards, rtol=0, atol=1e-6)


def test_without_jit_it_is_the_same():
    params, x = parameters(), sequence(*BATCH)
    np.testing.assert_allclose(outputs(params, x), plain()[0], rtol=0, atol=1e-5)


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

INTEGER = [(QuantConfig.integer(8), 1), (QuantConfig.integer(3, activations=5), 2)]
CELL_EXPONENT = 10


def integer_parameters(quant, layers):
    """`parameters` with the exponents of the inputs and the cell of each layer."""
    first, others = quant.activations - 3, quant.activations - 1
    return tuple(
        {**layer, "exponents": jnp.array([others if index else first, CELL_EXPONENT])}
        for index, layer in enumerate(parameters(layers))
    )


def on_grids(carry, quant):
    half = 2 ** (quant.activations - 1)
    codes = [(np.rint(h * half), np.rint(c * 2**CELL_EXPONENT)) for h, c in carry]
    return tuple(
        LSTMState(np.clip(h, -half, half - 1) / half, jnp.asarray(c / 2**CELL_EXPONENT)) for h, c in codes
    )


def assert_on_grids(carry, quant):
    half = 2 ** (quant.activations - 1)
    for h, c in carry:
        for codes, low in ((np.asarray(h) * half, -half), (np.asarray(c) * 2**CELL_EXPONENT, -(2**15))):
            np.testing.assert_array_equal(codes, np.rint(codes))
            assert low <= codes.min() <= codes.max() <= -low - 1


@pytest.mark.parametrize(("quant", "layers"), INTEGER, ids=["8 bits", "3 bits"])
def test_integer_scan_is_the_loop_of_steps_to_the_bit(quant, layers):
    params, x, lengths = integer_parameters(quant, layers), sequence(*BATCH), np.array([6, 4, 1, 0])
    start = carry = on_grids(a_carry(params, 4), quant)
    outputs, last = fast_scan(params, x, quant=quant, carry=start, lengths=jnp.asarray(lengths))
    for t in range(x.shape[1]):
        on = (t < lengths)[:, None]
        carry = jax.tree.map(partial(np.where, on), fast_step(params, carry, x[:, t], quant=quant), carry)
        np.testing.assert_array_equal(outputs[:, t], np.where(on, carry[-1].h, 0))
    jax.tree.map(np.testing.assert_array_equal, last, carry)
    assert_on_grids(last, quant)
    assert np.unique(outputs).size > 10


def test_an_integer_stream_is_its_clip_whatever_its_batch():
    quant, layers = INTEGER[1]
    params, x = integer_parameters(quant, layers), sequence(*BATCH)
    start = on_grids(a_carry(params, 4), quant)
    whole, last = fast_scan(params, x, quant=quant, carry=start)
    carry, pieces = start, []
    for piece in (x[:, :3], x[:, 3:]):
        outputs, carry = fast_scan(params, piece, quant=quant, carry=carry)
        pieces.append(outputs)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    jax.tree.map(np.testing.assert_array_equal, carry, last)
    own = jax.tree.map(lambda part: part[2:3], start)
    alone, _ = fast_scan(params, x[2:3], quant=quant, carry=own)
    np.testing.assert_array_equal(alone, whole[2:3])
    mapped = jax.jit(jax.vmap(lambda x, carry: lstm_scan(params, x, quant=quant, carry=carry)[0]))
    np.testing.assert_array_equal(mapped(x, start), whole)


def test_padding_changes_no_bit_of_an_integer_gradient():
    quant, layers = INTEGER[1]
    params, x, lengths = integer_parameters(quant, layers), sequence(3, 4), jnp.array([4, 3, 1])
    exponents = [layer["exponents"] for layer in params]

    @jax.jit
    def gradient(floats, x):
        def loss(floats, x):
            own = [{**layer, "exponents": each} for layer, each in zip(floats, exponents)]
            outputs, carry = lstm_scan(own, x, quant=quant, lengths=lengths)
            return (outputs**2).sum() + (carry[0].c ** 2).sum()

        return jax.grad(loss, argnums=(0, 1))(floats, x)

    floats = [{name: layer[name] for name in ("w", "b")} for layer in params]
    beyond = (jnp.arange(4)[None] >= lengths[:, None])[..., None]
    expected = gradient(floats, jnp.where(beyond, 0, x))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected))
    np.testing.assert_array_equal(np.where(beyond, expected[1], 0), 0)
    for padding in (np.nan, 1e30):
        got = gradient(floats, jnp.where(beyond, padding, x))
        jax.tree.map(np.testing.assert_array_equal, got, expected)


# Errors say what was expected and what was got.


def test_wrong_inputs_are_refused():
    params = parameters()
    message = r"layer 0: expected w of shape \(11, 24\) for 5 inputs and hidden_size 6, got \(9, 24\)"
    with pytest.raises(ValueError, match=message):
        lstm_scan(params, jnp.ones((2, 4, 5)))
    with pytest.raises(ValueError, match=message):
        lstm_step(params, lstm_zeros(params, (2,)), jnp.ones((2, 5)))


def test_layers_that_do_not_fit_each_other_are_refused():
    params = (*parameters(hidden_size=4), *parameters(inputs=5))
    message = r"layer 1: expected w of shape \(10, 24\) for 4 inputs and hidden_size 6, got \(11, 24\)"
    with pytest.raises(ValueError, match=message):
        lstm_scan(params, sequence(2, 4))


@pytest.mark.parametrize(
    ("carry", "message"),
    [
        (lambda p: (), "carry: expected a state for each of 1 layers, got 0"),
        (lambda p: lstm_zeros(p * 2, (2,)), "carry: expected a state for each of 1 layers, got 2"),
        (lambda p: lstm_zeros(p, (3,)), r"layer 0: h: expected \(2, 6\), got \(3, 6\)"),
        (lambda p: lstm_zeros(p), r"layer 0: h: expected \(2, 6\), got \(6,\)"),
        (
            lambda p: (LSTMState(jnp.ones((2, 6)), jnp.ones((2, 7))),),
            r"layer 0: c: expected \(2, 6\), got \(2, 7\)",
        ),
    ],
)
def test_a_carry_that_does_not_fit_is_refused(carry, message):
    params = parameters()
    with pytest.raises(ValueError, match=message):
        lstm_scan(params, sequence(2, 4), carry=carry(params))
    with pytest.raises(ValueError, match=message):
        lstm_step(params, carry(params), sequence(2))


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 4)])
def test_lengths_that_do_not_fit_are_refused(shape, monkeypatch):
    # The library's own error, without the annotations that only tests check.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    message = r"lengths: expected shape \(2,\), one for each sequence, got " + re.escape(str(shape))
    with pytest.raises(ValueError, match=message):
        lstm_scan(parameters(), sequence(2, 4), lengths=jnp.ones(shape, jnp.int32))
