"""Codes of the integer-only scheme: the integer arrays that every runtime holds, and their values.

An activation is an integer code with a static scale of 2^-exponent: code q stands for q · 2^-exponent.  A
weight is a signed code with one scale per output.  Their products add up in an int32 accumulator; one float32
multiplication, rounded half to even, brings it to the scale of the result:

    rescaled(acc) = round(acc · multiplier)

Everything else is integer arithmetic, with shifts that round half up: `shift(v, s) = (v + 2^(s - 1)) >> s`.
`detector/reference.py` defines the scheme in NumPy.  This module holds the parts shared with the
other runtimes, and imports NumPy alone.
"""

from typing import Any, NamedTuple

import numpy as np

LOGIT_EXPONENT = 9
"""Logits, and the gates' values before σ and tanh, have a scale of 2^-9."""
GATE_EXPONENT = 15
"""Gates, and values of tanh, have a scale of 2^-15."""
CELL_BITS = 16
"""Bits of the LSTM's cell state."""
CONV_GUARD_BITS = 8
"""Extra bits of a convolution's result below its output scale, until the bias is added."""
TABLE_LIMIT = (8 << LOGIT_EXPONENT) - 1
"""Last index of the sigmoid's table on either side of 0, just below 8; beyond it the end value holds."""


class ConvCodes(NamedTuple):
    """A convolution with its batch-norm and ReLU: max(shift(rescaled(acc) + bias, CONV_GUARD_BITS), 0).

    `w`: [taps, bands, channels, outputs]; `multiplier`, `bias`: [outputs].
    """

    w: Any
    multiplier: Any
    bias: Any


class LSTMCodes(NamedTuple):
    """A layer of an LSTM: z = rescaled(h · w_h) + rescaled(x · w_x) + bias, for the gates f, i, c~, o.

    `w_h`: [hidden_size, 4 · hidden_size], `w_x`: [inputs, 4 · hidden_size]; `multiplier_h`, `multiplier_x`,
    `bias`: [4 · hidden_size].  The cell state has a scale of 2^-`cell_exponent`.
    """

    w_h: Any
    w_x: Any
    multiplier_h: Any
    multiplier_x: Any
    bias: Any
    cell_exponent: Any


class LinearCodes(NamedTuple):
    """An output layer: logits rescaled(h · w) + bias; `w` is [hidden_size, events], the others [events]."""

    w: Any
    multiplier: Any
    bias: Any


def sigmoid_table() -> np.ndarray:
    """σ(i / 2^LOGIT_EXPONENT) as codes of scale 2^-GATE_EXPONENT, for i from -TABLE_LIMIT to TABLE_LIMIT.

    int32 [2 · TABLE_LIMIT + 1], symmetric: σ(-i) = 1 - σ(i).  No entry lies near a rounding tie, so that
    every maths library gives the same integers.

    >>> int(sigmoid_table()[TABLE_LIMIT])  # σ(0) = 1/2
    16384
    """
    positive = np.arange(TABLE_LIMIT + 1) / 2.0**LOGIT_EXPONENT
    upper = np.rint(2.0**GATE_EXPONENT / (1 + np.exp(-positive))).astype(np.int32)
    return np.concatenate([(1 << GATE_EXPONENT) - upper[:0:-1], upper])
