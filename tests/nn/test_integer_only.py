"""The integer-only scheme in JAX: exactly the reference's codes, and gradients of the recovered floats."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.config import QuantConfig
from qkd_jax.detector.codes import LinearCodes
from qkd_jax.detector.reference import advance, start
from qkd_jax.nn.integer_only import (
    conv_codes,
    convolve,
    from_inputs,
    integer_conv,
    integer_linear,
    linear,
    linear_codes,
    lstm_codes,
    recovered_weights,
    step,
)
from qkd_jax.nn.lstm import LSTMState, lstm_scan
from tests.detectors import DEEP, FRONT, PLAIN, random_codes, random_detector, with_bits
from tests.trees import assert_equal

CASES = [(FRONT, 8, 8), (FRONT, 4, 4), (PLAIN, 2, 2), (DEEP, 3, 5)]
FRAMES = 60
dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8], ids=["float32", "int8"])


def small(network, weights, activations):
    return dataclasses.replace(with_bits(network, weights, activations), hidden_size=8)


def parts(detector, dtype):
    """The codes of a detector, with weights in `dtype`."""

    def converted(leaf):
        return jnp.asarray(leaf, dtype if getattr(leaf, "dtype", None) == np.int8 else None)

    return jax.tree.map(converted, (detector.front, detector.lstm, detector.output, detector.attention))


def run(parts, codes, strides, bits):
    """The states of the LSTM after `codes` [frames, mels], and the output layers' codes at each step."""
    (front, lstm, output, attention), x, cells = parts, codes[None, ..., None], []
    for conv, stride in zip(front, strides):
        x = convolve(conv, x, stride, bits)
    x = x[0].reshape(x.shape[1], -1)
    for layer in lstm:

        def body(carry, z_x, layer=layer):
            h, c, _ = step(layer, *carry, z_x, bits)
            return (h, c), h

        zeros = jnp.zeros(layer.w_h.shape[0], jnp.int32)
        carry, x = jax.lax.scan(body, (zeros, zeros), from_inputs(layer, x))
        cells.append(carry)
    return cells, linear(output, x), None if attention is None else linear(attention, x)


fast_run = jax.jit(run, static_argnums=(2, 3))


def static(network):
    """The static arguments of `run`."""
    return tuple(map(network.conv_stride, range(len(network.convolutions)))), network.quant.activations


def assert_same(got, detector, codes):
    state, *outputs = advance(detector, start(detector), codes)
    expected = [tuple(cell) for cell in state.cells], *outputs
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert_equal(got, expected)


def assert_same_codes(detector, dtype, codes):
    got = fast_run(parts(detector, dtype), jnp.asarray(codes), *static(detector.network))
    assert_same(got, detector, codes)


@dtypes
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].pooling}-{case[1]}-{case[2]}")
@settings(max_examples=6, deadline=None, database=None, derandomize=True)
@given(seed=st.integers(0, 2**16))
def test_no_code_differs_from_the_reference(case, dtype, seed):
    detector = random_detector(small(*case), seed=seed, mels=9)
    assert_same_codes(detector, dtype, random_codes(detector, FRAMES, seed=seed))


@dtypes
def test_no_code_differs_over_a_clip_of_ten_seconds(dtype):
    detector = random_detector(FRONT, seed=5)
    assert_same_codes(detector, dtype, random_codes(detector, 998))


@dtypes
@pytest.mark.parametrize("cell", [6, 9, 13])
def test_no_code_differs_where_everything_saturates(cell, dtype):
    made = random_detector(small(FRONT, 8, 8), mels=9)

    def louder(layer):
        multipliers = (name for name in layer._fields if "multi" in name)
        return layer._replace(**{name: getattr(layer, name) * np.float32(1000) for name in multipliers})

    front = tuple(map(louder, made.front))
    lstm = tuple(louder(layer)._replace(cell_exponent=cell) for layer in made.lstm)
    detector = dataclasses.replace(made, front=front, lstm=lstm)
    assert_same_codes(detector, dtype, random_codes(detector, FRAMES))


def test_many_clips_and_many_detectors_at_once():
    network = small(DEEP, 3, 5)
    detectors = [random_detector(network, seed=seed, mels=9) for seed in (0, 1)]
    clips = np.stack([random_codes(detectors[0], FRAMES, seed=seed) for seed in (0, 1, 2)])
    codes_of = [parts(made, jnp.float32) for made in detectors]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *codes_of)
    at_once = jax.vmap(lambda codes: run(codes_of[0], codes, *static(network)))
    over_detectors = jax.vmap(lambda part: run(part, jnp.asarray(clips[0]), *static(network)))
    for got, made, codes in (
        (jax.jit(at_once)(clips), detectors[:1] * 3, clips),
        (jax.jit(over_detectors)(stacked), detectors, [clips[0]] * 2),
    ):
        for index, (detector, clip) in enumerate(zip(made, codes)):
            assert_same(jax.tree.map(lambda leaf, index=index: leaf[index], got), detector, clip)


def test_sums_of_int8_are_exact_beyond_floats():
    rng = np.random.default_rng(0)
    h, w = rng.integers(100, 128, (4, 5000)), rng.integers(100, 128, (5000, 3))
    zeros = np.zeros(3, np.int32)
    layer = jax.tree.map(jnp.asarray, LinearCodes(w.astype(np.int8), np.ones(3, np.float32), zeros))
    # The whole sum is rounded once, its parts not at all.
    assert (h @ w).min() > 2**25
    np.testing.assert_array_equal(jax.jit(linear)(layer, jnp.asarray(h, jnp.int32)), np.float32(h @ w))


def rounded(w, bits):
    """Symmetric codes and scales, with each operation rounded to float32."""
    scale = np.abs(w).max(axis=tuple(range(w.ndim - 1))) * np.float32(1 / (2 ** (bits - 1) - 1))
    return np.rint(w / np.where(scale > 0, scale, np.float32(1))), scale


def normal(*shape, seed=0, spread=1.0):
    return np.float32(np.random.default_rng(seed).normal(size=shape) * spread)


def layer_of(hidden, inputs, x_exponent, cell_exponent, seed=0):
    rows = np.repeat([0.4, 0.8], [hidden, inputs])[:, None]  # W_h and W_x of different ranges
    b = normal(4 * hidden, seed=seed + 1, spread=0.3) + np.repeat(np.float32([1.0, -0.5, 0.1, 0.4]), hidden)
    return {
        "w": jnp.asarray(normal(hidden + inputs, 4 * hidden, seed=seed) * np.float32(rows)),
        "b": jnp.asarray(b),
        "exponents": jnp.array([x_exponent, cell_exponent], jnp.int32),
    }


def test_the_codes_of_an_lstm():
    layer, quant = layer_of(3, 5, x_exponent=2, cell_exponent=11), QuantConfig.integer(4, activations=6)
    layer["w"] = layer["w"].at[:3, 7].set(0)
    got = jax.jit(lstm_codes, static_argnums=1)(layer, quant)
    w, b = np.asarray(layer["w"]), np.asarray(layer["b"])
    (w_h, scale_h), (w_x, scale_x) = rounded(w[:3], 4), rounded(w[3:], 4)
    np.testing.assert_array_equal(got.w_h, w_h)
    np.testing.assert_array_equal(got.w_x, w_x)
    # From scales of 2^-5 (h) and 2^-2 (x), times the weights' scale, to 2^-9.
    np.testing.assert_array_equal(got.multiplier_h, scale_h * 2**4)
    np.testing.assert_array_equal(got.multiplier_x, scale_x * 2**7)
    np.testing.assert_array_equal(got.bias, np.rint(b * 512))
    assert got.bias.dtype == jnp.int32
    assert int(got.cell_exponent) == 11
    assert got.multiplier_h[7] == 0
    recovered = np.concatenate([w_h * scale_h, w_x * scale_x])
    np.testing.assert_array_equal(recovered_weights(layer, quant), recovered)


def test_the_codes_of_a_convolution():
    w, gain = normal(3, 3, 2, 4), np.float32([0.3, -2.0, 0.0, 1.7])
    shift = np.float32([0.1, -3, 5, 5 / 2**13])
    got = jax.jit(conv_codes, static_argnums=5)(w, gain, shift, jnp.int32(3), jnp.int32(4), 5)
    codes, scale = rounded(np.asarray(w), 5)
    np.testing.assert_array_equal(got.w, codes)
    # From a scale of 2^-3, times the weights' scale, to 2^-4 with 8 more bits.
    np.testing.assert_array_equal(got.multiplier, scale * np.asarray(gain) * np.float32(2**9))
    np.testing.assert_array_equal(got.bias, [410, -12288, 20480, 2])  # 2.5 is rounded to even


def test_the_codes_of_an_output_layer_have_bits_of_their_own():
    w, b, quant = normal(6, 3), np.float32([0.1, -2, 3 / 1024]), QuantConfig.integer(2, activations=4)
    got = jax.jit(linear_codes, static_argnums=2)(w, b, quant)
    codes, scale = rounded(w, 8)
    np.testing.assert_array_equal(got.w, codes)
    np.testing.assert_array_equal(got.multiplier, scale * 2**6)
    np.testing.assert_array_equal(got.bias, [51, -1024, 2])


# Values and gradients.  Where a code is near a limit, the float beside it may lie on the other side.


def through(value, slope):
    return jax.lax.stop_gradient(value - slope) + slope


def frames(bits, exponent, *, signed, seed=0):
    """Codes times their scale."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    codes = np.random.default_rng(seed).integers(low, high, (2, 9, 7, 2))
    return jnp.asarray(codes * 2.0**-exponent, jnp.float32)


@pytest.mark.parametrize(("stride", "weights", "activations"), [(1, 8, 8), (2, 2, 4), (1, 4, 2)])
def test_a_convolution_gives_its_codes_and_the_gradient_of_floats(stride, weights, activations):
    quant = QuantConfig.integer(weights, activations)
    x_exponent, exponent, largest = activations - 3, activations - 4, 2**activations - 1
    w, gain = normal(3, 3, 2, 5), np.float32([0.4, -0.7, 0.2, 1.5, 4.0])
    shift, x = np.float32([0.5, 3, -1, 8, 0]), frames(activations, x_exponent, signed=stride == 1)
    codes, scale = rounded(w, weights)

    def library(*arguments):
        exponents = jnp.int32(x_exponent), jnp.int32(exponent)
        return integer_conv(*arguments, *exponents, stride=stride, quant=quant)

    def plain(w, gain, shift, x):
        w_hat = through(codes * scale, w)
        shape = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": "highest"}
        y = jax.lax.conv_general_dilated(x, w_hat, (stride, 2), ((0, 0), (1, 1)), **shape)
        y = y * gain[None, None, None] + shift[None, None, None]
        code = y * 2.0**exponent
        return jnp.where((code >= 0.5) & (code < largest + 0.5), y, 0), code

    @jax.jit
    def both(*arguments):
        y, pullback = jax.vjp(library, *arguments)
        (floats, code), plain_pullback = jax.vjp(plain, *arguments)
        clear = jnp.minimum(abs(code - 0.5), abs(code - largest - 0.5)) > 0.01
        dy = jnp.where(clear, normal(*y.shape, seed=3), 0)
        ints = jnp.round(arguments[-1] * 2.0**x_exponent).astype(jnp.int32)
        folded = conv_codes(*arguments[:3], jnp.int32(x_exponent), jnp.int32(exponent), weights)
        exact = convolve(folded, ints, stride, activations)
        return y, exact, floats, code, clear, pullback(dy), plain_pullback((dy, jnp.zeros_like(code)))

    y, exact, floats, code, clear, got, expected = both(w, gain, shift, x)
    np.testing.assert_array_equal(y * 2.0**exponent, exact)
    # Codes and floats differ only by roundings: of the bias, of the sum, and of both together.
    inside = (code > 0) & (code < largest)
    assert np.abs((y - floats) * 2.0**exponent)[inside & clear].max() <= 0.51
    assert 0.2 < inside.mean() < 0.9
    assert (code > largest + 1).any()
    for a, b in zip(got, expected):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_a_convolution_of_zeros_has_a_gradient():
    # A column of zeros has a scale of 0, but a gradient like any other.
    quant, x = QuantConfig.integer(4), frames(8, 5, signed=True)

    def total(w):
        ones = jnp.ones(1)
        return integer_conv(w, ones, ones, x, jnp.int32(5), jnp.int32(5), stride=1, quant=quant).sum()

    assert np.abs(jax.jit(jax.grad(total))(jnp.zeros((3, 3, 2, 1)))).min() > 0


@pytest.mark.parametrize("activations", [8, 2])
def test_an_output_layer_gives_its_codes_and_the_gradient_of_floats(activations):
    quant = QuantConfig.integer(2, activations)
    w, b = jnp.asarray(normal(6, 3)), jnp.asarray(normal(3, seed=1))
    half = 2 ** (activations - 1)
    ints = np.random.default_rng(2).integers(-half, half, (4, 5, 6)).astype(np.int32)
    h, dy = jnp.asarray(ints / half, jnp.float32), normal(4, 5, 3, seed=3)
    codes, scale = rounded(np.asarray(w), 8)

    def plain(w, b, h):
        return jnp.matmul(h, through(codes * scale, w), precision="highest") + b[None, None]

    @jax.jit
    def both(*arguments):
        y, pullback = jax.vjp(lambda *a: integer_linear(*a, quant), *arguments)
        floats, plain_pullback = jax.vjp(plain, *arguments)
        return y, floats, pullback(dy), plain_pullback(dy)

    y, floats, got, expected = both(w, b, h)
    exact = linear(linear_codes(w, b, quant), jnp.asarray(ints))
    np.testing.assert_array_equal(y * 512, exact)
    np.testing.assert_allclose(y, floats, rtol=0, atol=1.01 / 512)  # half a code each of the product and of b
    for a, expected_leaf in zip(got, expected):
        np.testing.assert_allclose(a, expected_leaf, rtol=1e-5, atol=1e-5)


HIDDEN, INPUTS, BATCH, STEPS = 5, 4, 3, 6


def layers(quant, count, cell_exponent=11):
    """Layers whose inputs have the scale of the layer before."""
    first = layer_of(HIDDEN, INPUTS, quant.activations - 3, cell_exponent)
    return first, *(
        layer_of(HIDDEN, HIDDEN, quant.activations - 1, cell_exponent, seed=2 * index)
        for index in range(1, count)
    )


def inputs(quant, seed=4):
    half = 2 ** (quant.activations - 1)
    codes = np.random.default_rng(seed).integers(-half, half, (BATCH, STEPS, INPUTS))
    return jnp.asarray(codes / 2.0 ** (quant.activations - 3), jnp.float32)


def floats_of(layers):
    return [{name: layer[name] for name in ("w", "b")} for layer in layers]


def plain_scan(layers, quant, floats, x, carry):
    """A loop in plain autodiff: values from `step`, slopes of sigmoid and tanh from these values."""
    bits, finals, x = quant.activations, [], jnp.moveaxis(x, 1, 0)
    for layer, own, (h, c) in zip(layers, floats, carry):
        exponents = layer["exponents"]
        x_scale, c_scale = (2.0 ** -exponents[index].astype(jnp.float32) for index in (0, 1))
        h_scale = 2.0 ** (1 - bits)
        constant = {**jax.lax.stop_gradient(own), "exponents": exponents}
        layer_codes = lstm_codes(constant, quant)
        w_hat = through(recovered_weights(constant, quant), own["w"])

        def body(carry, x_t):
            h, c = carry
            scaled = (h / h_scale, c / c_scale, x_t / x_scale)
            h_code, c_code, x_code = (jnp.round(codes).astype(jnp.int32) for codes in scaled)
            h_code, c_code, gates = step(layer_codes, h_code, c_code, from_inputs(layer_codes, x_code), bits)
            z = jnp.matmul(jnp.concatenate([h, x_t], 1), w_hat, precision="highest") + own["b"][None]
            *values, squashed = (code * 2.0**-15 for code in gates)
            slopes = (1 - gate**2 if index == 2 else gate * (1 - gate) for index, gate in enumerate(values))
            f, i, candidate, o = map(through, values, map(jnp.multiply, slopes, jnp.split(z, 4, 1)))
            inside = (c_code > -(2**15)) & (c_code < 2**15 - 1)
            c = through(c_code * c_scale, jnp.where(inside, f * c + i * candidate, 0))
            h = through(h_code * h_scale, o * through(squashed, (1 - squashed**2) * c))
            return (h, c), h

        final, x = jax.lax.scan(body, (h, c), x)
        finals.append(final)
    return jnp.moveaxis(x, 0, 1), finals


def library_scan(layers, quant, floats, x, carry):
    params = [{**own, "exponents": layer["exponents"]} for layer, own in zip(layers, floats)]
    outputs, final = lstm_scan(params, x, quant=quant, carry=[LSTMState(*state) for state in carry])
    return outputs, [tuple(state) for state in final]


def start_of(count, quant, cell_exponent=11):
    """Random states, codes times their scales."""
    rng, half = np.random.default_rng(9), 2 ** (quant.activations - 1)

    def state(largest, scale):
        return jnp.asarray(rng.integers(-largest, largest, (BATCH, HIDDEN)) / scale, jnp.float32)

    return [(state(half, half), state(4000, 2.0**cell_exponent)) for _ in range(count)]


@pytest.mark.parametrize(("bits", "count"), [((2, 4), 1), ((8, 8), 2)], ids=["one layer", "two"])
def test_the_lstms_gradient_is_straight_through(bits, count):
    quant = QuantConfig.integer(bits[0], activations=bits[1])
    made = layers(quant, count)

    def loss(scan, *arguments):
        outputs, final = scan(made, quant, *arguments)
        weighted = (outputs * normal(*outputs.shape, seed=6)).sum() + sum((c**3).sum() for _, c in final)
        return weighted, (outputs, final)

    arguments = floats_of(made), inputs(quant), start_of(count, quant)
    (got, values), (expected, plain_values) = (
        jax.jit(jax.grad(partial(loss, scan), argnums=(0, 1, 2), has_aux=True))(*arguments)
        for scan in (library_scan, plain_scan)
    )
    assert_equal(values, plain_values)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
        assert np.abs(b).max() > 1e-2


def test_a_clipped_cell_has_no_gradient():
    # Gates are open and candidates 1: c grows by 1 per step, but only to 4 if its scale is 2^-13.
    quant, x = QuantConfig.integer(8), jnp.zeros((1, STEPS, INPUTS))
    b = jnp.repeat(jnp.float32([6, 6, 3, 1]), HIDDEN)
    w = jnp.asarray(normal(HIDDEN + INPUTS, 4 * HIDDEN, spread=0.01))

    def total(b, x, cell_exponent):
        params = [{"w": w, "b": b, "exponents": jnp.stack([jnp.int32(5), cell_exponent])}]
        c = lstm_scan(params, x, quant=quant)[1][0].c
        return c.sum(), c

    gradient = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    for sign, end in ((1, 2**15 - 1), (-1, -(2**15))):
        signed = b * jnp.repeat(jnp.float32([1, 1, sign, 1]), HIDDEN)
        clipped, c = gradient(signed, x, jnp.int32(13))
        np.testing.assert_array_equal(c, end / 2**13)
        assert all((leaf == 0).all() for leaf in clipped)
        (by_b, by_x), _ = gradient(signed, x, jnp.int32(12))
        assert (by_b[: 3 * HIDDEN] != 0).all() and (by_x != 0).all()
