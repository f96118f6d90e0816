"""The integers of a network: what every runtime holds, and what they mean.

An activation is an integer code in a static power-of-two unit, a weight a signed code with a
scale for its column, and a product of theirs an int32 accumulator, brought back by one float32
multiplication and rounded half to even:

    rescaled(acc) = round(acc · multiplier)

Everything else is integer arithmetic, shifts rounding half up: `shift(v, s) = (v + 2^(s - 1)) >> s`.
`deploy/reference.py` is the definition, in NumPy; this file holds what it shares with other runtimes, and
imports nothing but NumPy.
"""

from typing import Any, NamedTuple

import numpy as np

GRID = 9
"""Pre-activations of gates, and logits, are in units of 2^-9."""
GATE = 15
"""Gates, and tanh, are in units of 2^-15."""
CELL = 16
"""Bits of the LSTM's cell."""
MARGIN = 8
"""Bits below its unit that a convolution's result has, until its bias is added."""
LIMIT = (8 << GRID) - 1
"""The sigmoid's table ends here, short of 8."""


class ConvCodes(NamedTuple):
    """A convolution with its batch-norm and ReLU: shift(rescaled(acc) + bias, MARGIN), cut to 0 and above.

    `w`: [taps, bands, channels, outputs]; `multiplier`, `bias`: [outputs].
    """

    w: Any
    multiplier: Any
    bias: Any


class LSTMCodes(NamedTuple):
    """A layer of an LSTM: z = rescaled(h · w_h) + rescaled(x · w_x) + bias, for the gates f, i, c~, o.

    `w_h`: [units, 4 · units], `w_x`: [inputs, 4 · units]; `multiplier_h`, `multiplier_x`, `bias`:
    [4 · units]; the cell is in units of 2^-`cell`.
    """

    w_h: Any
    w_x: Any
    multiplier_h: Any
    multiplier_x: Any
    bias: Any
    cell: Any


class LinearCodes(NamedTuple):
    """An output layer: rescaled(h · w) + bias, on the grid, `w` [units, events]; the others [events]."""

    w: Any
    multiplier: Any
    bias: Any


def sigmoid_table() -> np.ndarray:
    """σ(i / 2^GRID) in units of 2^-GATE for i in -LIMIT … LIMIT, int32 [2 · LIMIT + 1].

    Symmetric: σ(-i) = 1 - σ(i).  No entry lies near a tie, so any libm gives the same ones.
    """
    upper = np.rint(2.0**GATE / (1 + np.exp(-np.arange(LIMIT + 1) / 2.0**GRID))).astype(np.int32)
    return np.concatenate([(1 << GATE) - upper[:0:-1], upper])
