"""The integer-only scheme in NumPy: the definition, which every other runtime must match code for code."""

import math
from typing import NamedTuple

import numpy as np

from qkd_jax.detector.codes import (
    CELL_BITS,
    CONV_GUARD_BITS,
    GATE_EXPONENT,
    LOGIT_EXPONENT,
    TABLE_LIMIT,
    ConvCodes,
    LinearCodes,
    LSTMCodes,
    sigmoid_table,
)
from qkd_jax.detector.detector import Detector

_SIGMOID = sigmoid_table()


class Cell(NamedTuple):
    """State of an LSTM layer: codes `h`, of scale 2^-(activations - 1), and `c`, int32 [hidden_size]."""

    h: np.ndarray
    c: np.ndarray


class State(NamedTuple):
    """The state between two pieces of a stream.

    `tails`: for each convolution, the frames of its input that later steps read [frames, bands, channels];
    `cells`: the state of each layer of the LSTM.
    """

    tails: tuple[np.ndarray, ...]
    cells: tuple[Cell, ...]


def start(detector: Detector) -> State:
    """The state before the first frame."""
    bands, channels, tails = detector.features.n_mels, 1, []
    for conv in detector.front:
        tails.append(np.zeros((0, bands, channels), np.int32))
        bands, channels = -(-bands // 2), conv.w.shape[-1]
    cells = (Cell(*np.zeros((2, layer.w_h.shape[0]), np.int32)) for layer in detector.lstm)
    return State(tuple(tails), tuple(cells))


def input_codes(detector: Detector, log_mel: np.ndarray) -> np.ndarray:
    """The input codes of log-mel energies, float32 [frames, mels]: int32 of the same shape."""
    half = 1 << (detector.network.quant.activations - 1)
    scaled = (log_mel - detector.mean) / detector.std * np.float32(2.0**detector.input_exponent)
    return np.clip(np.rint(scaled), -half, half - 1).astype(np.int32)


def advance(
    detector: Detector, state: State, codes: np.ndarray
) -> tuple[State, np.ndarray, np.ndarray | None]:
    """The state after `codes` (`input_codes` [frames, mels]), and the output layers' codes at each step.

    These are the logits and the attention's, int32 [steps, events] of scale 2^-LOGIT_EXPONENT; None without
    attention.  However a stream is cut into pieces, the codes are the same.
    """
    bits, (tails, cells) = detector.network.quant.activations, state
    x, new_tails, new_cells = codes[..., None], [], []
    for index, (conv, tail) in enumerate(zip(detector.front, tails)):
        x, tail = _convolve(conv, np.concatenate([tail, x]), detector.network.conv_stride(index), bits)
        new_tails.append(tail)
    x = x.reshape(len(x), math.prod(x.shape[1:]))
    for layer, cell in zip(detector.lstm, cells):
        x, cell = _scan(layer, cell, x, bits)
        new_cells.append(cell)
    attention = None if detector.attention is None else _linear(detector.attention, x)
    return State(tuple(new_tails), tuple(new_cells)), _linear(detector.output, x), attention


def clip_logits(detector: Detector, codes: np.ndarray) -> np.ndarray:
    """Logits float32 [events] of a whole clip of `codes` (`input_codes` [frames, mels])."""
    return pooled(detector.network.pooling, *advance(detector, start(detector), codes)[1:])


def pooled(pooling: str, outputs: np.ndarray, attention: np.ndarray | None) -> np.ndarray:
    """Logits float32 [events] of a clip from the output layers' codes at each step, int32 [steps, events]."""
    logits = outputs / 2.0**LOGIT_EXPONENT
    if attention is not None:
        weights = np.exp((attention - attention.max(axis=0)) / 2.0**LOGIT_EXPONENT)
        logits = (weights * logits).sum(axis=0) / weights.sum(axis=0)
    else:
        logits = logits[-1] if pooling == "last" else logits.mean(axis=0)
    return logits.astype(np.float32)


def _convolve(conv: ConvCodes, x: np.ndarray, stride: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The codes of the steps that x completes, [steps, bands / 2, outputs], and the frames still needed."""
    taps, *_, outputs = conv.w.shape
    steps = max((len(x) - taps) // stride + 1, 0)
    if not steps:
        return np.zeros((0, -(-x.shape[1] // 2), outputs), np.int32), x
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (taps, 3), (0, 1))
    patches = (
        patches[: steps * stride : stride, ::2].transpose(0, 1, 3, 4, 2).reshape(-1, conv.w[..., 0].size)
    )
    acc = _product(patches, conv.w.reshape(-1, outputs)).reshape(steps, -(-x.shape[1] // 2), outputs)
    codes = _shift(_rescaled(acc, conv.multiplier) + conv.bias, CONV_GUARD_BITS)
    return np.clip(codes, 0, (1 << bits) - 1), x[steps * stride :]


def _scan(layer: LSTMCodes, cell: Cell, x: np.ndarray, bits: int) -> tuple[np.ndarray, Cell]:
    """The codes h after each step of x [steps, inputs], and the cell after the last."""
    from_x = _rescaled(_product(x, layer.w_x), layer.multiplier_x) + layer.bias
    w_h, hs = layer.w_h.astype(np.float64), np.zeros((len(x), len(cell.h)), np.int32)
    for step, z_x in enumerate(from_x):
        cell = _step(layer, cell, _rescaled(_product(cell.h, w_h), layer.multiplier_h) + z_x, bits)
        hs[step] = cell.h
    return hs, cell


def _step(layer: LSTMCodes, cell: Cell, z: np.ndarray, bits: int) -> Cell:
    z_f, z_i, z_c, z_o = np.split(z, 4)
    f, i, o, candidate = _sigmoid(z_f), _sigmoid(z_i), _sigmoid(z_o), _tanh(z_c)
    c = _shift(f * cell.c, GATE_EXPONENT) + _shift(i * candidate, 2 * GATE_EXPONENT - layer.cell_exponent)
    c = np.clip(c, -(1 << (CELL_BITS - 1)), (1 << (CELL_BITS - 1)) - 1)
    finer = layer.cell_exponent - LOGIT_EXPONENT
    rescaled = _shift(c, finer) if finer > 0 else c << -finer
    h = _shift(o * _tanh(rescaled), 2 * GATE_EXPONENT - (bits - 1))
    return Cell(np.clip(h, -(1 << (bits - 1)), (1 << (bits - 1)) - 1), c)


def _linear(linear: LinearCodes, h: np.ndarray) -> np.ndarray:
    return _rescaled(_product(h, linear.w), linear.multiplier) + linear.bias


def _product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The int32 accumulators x · w; in float64, exact below 2^53, because BLAS has no integers."""
    return (x.astype(np.float64) @ w.astype(np.float64, copy=False)).astype(np.int32)


def _rescaled(acc: np.ndarray, multiplier: np.ndarray) -> np.ndarray:
    return np.rint(acc.astype(np.float32) * multiplier).astype(np.int32)


def _shift(value: np.ndarray, by: int) -> np.ndarray:
    return (value + (1 << (by - 1))) >> by


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return _SIGMOID[np.clip(z, -TABLE_LIMIT, TABLE_LIMIT) + TABLE_LIMIT]


def _tanh(z: np.ndarray) -> np.ndarray:
    """2 σ(2 z) - 1."""
    return 2 * _sigmoid(2 * z) - (1 << GATE_EXPONENT)
