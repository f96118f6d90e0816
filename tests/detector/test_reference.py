"""The reference of the integer-only scheme against loops over Python's integers, which are exact."""

import copy
import dataclasses
import math
import struct
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.detector.codes import LOGIT_EXPONENT, ConvCodes, LinearCodes, LSTMCodes, sigmoid_table
from qkd_jax.detector.reference import advance, clip_logits, input_codes, pooled, start
from tests.detectors import FORMS, FRONT, PLAIN, random_codes, random_detector, with_bits


def single(value):
    """The float32 nearest to a number, ties to even."""
    return struct.unpack("f", struct.pack("f", value))[0]


def rescaled(acc, multiplier):
    # The product of two float32 is exact in float64; `round` rounds ties to even.
    return round(single(single(acc) * float(multiplier)))


def shift(value, by):
    return math.floor(Fraction(value, 2**by) + Fraction(1, 2))


def clamp(value, low, high):
    return min(max(value, low), high)


@cache
def exact_sigmoid(i):
    """2^15 σ(i / 512), in decimals."""
    with localcontext(prec=40):
        return 2**15 / (1 + (Decimal(-i) / 512).exp())


def sigmoid(z):
    return round(exact_sigmoid(clamp(z, -4095, 4095)))


def tanh(z):
    return 2 * sigmoid(2 * z) - 2**15


def convolve(conv, x, stride, bits):
    """The codes of all steps; x holds frames of bands of channels."""
    w, multiplier, bias = (array.tolist() for array in conv)
    bands, outputs = len(x[0]), len(bias)

    def code(step, band, output):
        acc = sum(
            w[tap][side][channel][output] * value
            for tap in range(3)
            for side in range(3)
            if 0 <= 2 * band + side - 1 < bands
            for channel, value in enumerate(x[step * stride + tap][2 * band + side - 1])
        )
        return clamp(shift(rescaled(acc, multiplier[output]) + bias[output], 8), 0, 2**bits - 1)

    steps = range((len(x) - 3) // stride + 1)
    halved = range(math.ceil(bands / 2))
    return [[[code(step, band, o) for o in range(outputs)] for band in halved] for step in steps]


def dot(x, w, column):
    return sum(a * row[column] for a, row in zip(x, w, strict=True))


def linear(layer, h):
    w, multiplier, bias = (array.tolist() for array in layer)
    return [rescaled(dot(h, w, k), multiplier[k]) + bias[k] for k in range(len(bias))]


def lstm_step(layer, h, c, x, bits):
    hidden, exponent = len(h), layer.cell_exponent
    w_h, w_x, by_h, by_x, bias = (array.tolist() for array in layer[:5])
    new_h, new_c = [], []
    for unit in range(hidden):
        f, i, candidate, o = (
            squash(rescaled(dot(h, w_h, k), by_h[k]) + rescaled(dot(x, w_x, k), by_x[k]) + bias[k])
            for squash, k in zip((sigmoid, sigmoid, tanh, sigmoid), range(unit, 4 * hidden, hidden))
        )
        c_new = shift(f * c[unit], 15) + shift(i * candidate, 30 - exponent)
        c_new = clamp(c_new, -(2**15), 2**15 - 1)
        rescaled_c = shift(c_new, exponent - 9) if exponent > 9 else c_new * 2 ** (9 - exponent)
        new_c.append(c_new)
        new_h.append(
            clamp(shift(o * tanh(rescaled_c), 30 - (bits - 1)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
    return new_h, new_c


def by_loops(detector, codes):
    """As `advance` from the start: (outputs, attention, h and c of each layer)."""
    bits, x = detector.network.quant.activations, codes[..., None].tolist()
    for index, conv in enumerate(detector.front):
        x = convolve(conv, x, 2 if index < detector.network.time_strides else 1, bits)
    states = [([0] * len(layer.w_h), [0] * len(layer.w_h)) for layer in detector.lstm]
    outputs, attention = [], []
    for frame in x:
        inputs = [value for band in frame for value in band]
        for index, layer in enumerate(detector.lstm):
            states[index] = lstm_step(layer, *states[index], inputs, bits)
            inputs = states[index][0]
        outputs.append(linear(detector.output, inputs))
        attention.append(linear(detector.attention, inputs) if detector.attention else None)
    return outputs, attention if detector.attention else None, states


def same_as_loops(detector, codes):
    """Assert that `advance` is `by_loops`, and return the outputs and the states of the latter."""
    state, outputs, attention = advance(detector, start(detector), codes)
    expected = by_loops(detector, codes)
    np.testing.assert_array_equal(outputs, expected[0])
    assert (attention is None) == (expected[1] is None)
    np.testing.assert_array_equal(attention, expected[1])
    np.testing.assert_array_equal([(cell.h, cell.c) for cell in state.cells], expected[2])
    return expected[0], expected[2]


@pytest.mark.parametrize(
    ("weights", "activations", "mels", "seed"), [(8, 8, 9, 0), (4, 8, 12, 1), (3, 5, 7, 2), (2, 2, 10, 3)]
)
@pytest.mark.parametrize("form", FORMS)
def test_every_code_equals_that_of_the_loops(form, weights, activations, mels, seed):
    network = dataclasses.replace(with_bits(FORMS[form], weights, activations), hidden_size=6)
    detector = random_detector(network, seed=seed, mels=mels)
    codes = random_codes(detector, 41 if form == "front" else 12, seed=seed)
    outputs, states = same_as_loops(detector, codes)
    assert len(np.unique(outputs)) > 10  # nothing is stuck
    assert any(np.unique(h).size > 2 for h, _ in states) or activations == 2


def extreme(activations, cell):
    """Weights at the ends of their range, of both signs, and results near 2^29, a detector's limit."""
    network = dataclasses.replace(with_bits(FRONT, 8, activations), convolutions=(2, 2), hidden_size=4)
    made = random_detector(network, mels=6)

    def ends(shape):
        signs = np.where(np.arange(shape[-1]) % 3 == 0, -1, 1)
        return np.broadcast_to(127 * signs, shape).astype(np.int8)

    def multiplier(w, x_max):
        return np.full(w.shape[-1], 2**27 / (127 * w[..., 0].size * x_max), np.float32)

    def bias(w):
        return (np.sign(w.reshape(-1, w.shape[-1])[0], dtype=np.int32) << 27).astype(np.int32)

    signed, unsigned = 2 ** (activations - 1), 2**activations - 1
    front, x_max = [], signed
    for conv in made.front:
        w = ends(conv.w.shape)
        front.append(ConvCodes(w, 2 * multiplier(w, x_max), bias(w)))
        x_max = unsigned
    w_h, w_x = (ends(w.shape) for w in made.lstm[0][:2])
    layer = LSTMCodes(w_h, w_x, multiplier(w_h, signed), multiplier(w_x, unsigned), bias(w_h), cell)
    w = ends(made.output.w.shape)
    output = LinearCodes(w, 3 * multiplier(w, signed), bias(w))
    return dataclasses.replace(made, front=tuple(front), lstm=(layer,), output=output)


@pytest.mark.parametrize("cell", [6, 9, 10, 13])
@pytest.mark.parametrize("activations", [8, 2])
def test_extremes_do_not_overflow(activations, cell):
    detector, low = extreme(activations, cell), -(2 ** (activations - 1))
    ends = np.repeat([low, -low - 1, low], 16)
    _, ((_, c),) = same_as_loops(detector, np.broadcast_to(ends[:, None], (48, 6)).astype(np.int32))
    assert cell < 13 or -(2**15) in c


def test_a_cell_grows_to_both_ends_and_stays_there():
    ones, open_gate = np.ones(8, np.float32), 8 << LOGIT_EXPONENT
    candidates = [open_gate, -open_gate]
    bias = np.int32([open_gate, open_gate, open_gate, open_gate, *candidates, open_gate, open_gate])
    made = random_detector(dataclasses.replace(PLAIN, hidden_size=2), mels=6)
    layer = LSTMCodes(np.zeros((2, 8), np.int8), np.zeros((6, 8), np.int8), ones, ones, bias, 13)
    _, ((h, c),) = same_as_loops(dataclasses.replace(made, lstm=(layer,)), np.zeros((6, 6), np.int32))
    assert c == [2**15 - 1, -(2**15)]
    assert h == [127, -128]


def test_the_table_is_the_sigmoid_rounded_to_the_last_bit():
    table = sigmoid_table()
    assert table.dtype == np.int32 and table.shape == (8191,)
    exact = [exact_sigmoid(i) for i in range(-4095, 4096)]
    np.testing.assert_array_equal(table, [round(value) for value in exact])
    np.testing.assert_array_equal(table + table[::-1], 2**15)
    # So far from a tie that no maths library rounds it differently.
    assert min(abs(value % 1 - Decimal("0.5")) for value in exact) > Decimal("1e-6")


@cache
def detector_of(form):
    return random_detector(dataclasses.replace(FORMS[form], hidden_size=6), mels=9)


FRAMES = 41


@cache
def whole(form):
    detector = detector_of(form)
    return advance(detector, start(detector), random_codes(detector, FRAMES))


def assert_equal_states(*states):
    leaves = ([*state.tails, *(part for cell in state.cells for part in cell)] for state in states)
    for a, b in zip(*leaves, strict=True):
        assert a.shape == b.shape and np.array_equal(a, b)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, FRAMES), max_size=12))
def test_a_stream_may_be_cut_anywhere(form, cuts):
    # Some pieces are empty, or shorter than a convolution reads.
    detector, state, pieces = detector_of(form), start(detector_of(form)), []
    for piece in np.split(random_codes(detector, FRAMES), sorted(cuts)):
        state, *codes = advance(detector, state, piece)
        pieces.append(codes)
    end, *expected = whole(form)
    for got, codes in zip(zip(*pieces), expected):
        if codes is not None:
            np.testing.assert_array_equal(np.concatenate(got), codes)
    assert_equal_states(state, end)


@pytest.mark.parametrize("form", FORMS)
def test_advancing_does_not_change_the_state_it_starts_from(form):
    detector = detector_of(form)
    state, *_ = advance(detector, start(detector), random_codes(detector, 20))
    before = copy.deepcopy(state)
    advance(detector, state, random_codes(detector, 20))
    assert_equal_states(state, before)


@pytest.mark.parametrize("activations", [8, 4, 2])
def test_inputs_are_rounded_half_to_even_and_clipped(activations):
    half = 2 ** (activations - 1)
    made = random_detector(with_bits(PLAIN, 8, activations), mels=7)
    detector = dataclasses.replace(
        made, mean=np.full(7, -6, np.float32), std=np.full(7, 4, np.float32), input_exponent=3
    )
    wanted = [0.5, 1.5, -0.5, -1.5, 1e6, -1e6, half - 0.5]  # of scale 2^-3
    log_mel = np.float32([wanted]) * 4 / 8 - 6
    codes = input_codes(detector, log_mel)
    assert codes.dtype == np.int32
    expected = [clamp(round(value), -half, half - 1) for value in wanted]
    np.testing.assert_array_equal(codes, [expected])
    assert expected[:4] == [0, min(2, half - 1), 0, -2]


def test_inputs_are_divided_not_multiplied_by_a_reciprocal():
    # Ties, which a quotient one bit off would round the other way.
    made, std = random_detector(PLAIN, mels=50), np.arange(3, 103, 2, dtype=np.float32)
    detector = dataclasses.replace(made, mean=np.zeros(50, np.float32), std=std)
    ties = np.arange(-100, 100) + 0.5
    log_mel = (ties[:, None] * std * 2.0**-detector.input_exponent).astype(np.float32)
    expected = np.broadcast_to([[round(tie)] for tie in ties], (200, 50))
    np.testing.assert_array_equal(input_codes(detector, log_mel), expected)


def test_rescaled_accumulators_are_float32_products_half_to_even():
    # Products with 0.5 are ties half of the time; float32 products of about 2^22 too, though not in float64.
    made = random_detector(dataclasses.replace(PLAIN, hidden_size=6), mels=9)
    multiplier = np.float32([0.5, 1000.1, 3000.7])
    detector = dataclasses.replace(made, output=made.output._replace(multiplier=multiplier))
    outputs, _ = same_as_loops(detector, random_codes(detector, 40))
    assert np.abs(outputs).max() > 2**22


def test_pooling_last_reads_the_last_step_and_mean_the_mean():
    outputs = np.int32([[5, -7, 9], [1 << LOGIT_EXPONENT, -256, 3]])
    np.testing.assert_array_equal(pooled("last", outputs, None), np.float32([1, -0.5, 3 / 512]))
    outputs = np.int32([[512, 0, 1], [1024, -512, 2], [0, 0, 4]])
    np.testing.assert_allclose(pooled("mean", outputs, None), [1, -1 / 3, 7 / 1536], rtol=1e-6)


def test_attention_weights_each_event_separately():
    outputs = np.int32([[512, 512, 512], [1024, -512, 0]])
    attention = np.int32([[0, 512, 50_000_000], [0, -512, -50_000_000]])  # of any size
    two = 1 / (1 + math.exp(-2))
    expected = [1.5, two - (1 - two), 1]
    np.testing.assert_allclose(pooled("attention", outputs, attention), expected, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_clips_logits_are_pooled_from_its_steps(form):
    detector = detector_of(form)
    _, outputs, attention = whole(form)
    logits = clip_logits(detector, random_codes(detector, FRAMES))
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, pooled(detector.network.pooling, outputs, attention))
