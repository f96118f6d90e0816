"""The integer scheme in NumPy: the definition that every other runtime is held to, code for code."""

import math
from typing import NamedTuple

import numpy as np

from qkd_jax.detector.codes import (
    CELL,
    GATE,
    GRID,
    LIMIT,
    MARGIN,
    ConvCodes,
    LinearCodes,
    LSTMCodes,
    sigmoid_table,
)
from qkd_jax.detector.detector import Detector

_SIGMOID = sigmoid_table()


class Cell(NamedTuple):
    """What a layer of the LSTM carries: codes `h`, units of 2^-(activations - 1), and `c`, int32 [units]."""

    h: np.ndarray
    c: np.ndarray


class State(NamedTuple):
    """What a detector carries from one piece of a stream to the next.

    `tails`: for each convolution, the frames of its input that are still to be read [frames, bands,
    channels]; `cells`: what each layer of the LSTM carries.
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
    """What the first layer sees of log-mel energies, float32 [frames, mels]: int32 of the same shape."""
    half = 1 << (detector.network.quant.activations - 1)
    scaled = (log_mel - detector.mean) / detector.std * np.float32(2.0**detector.input)
    return np.clip(np.rint(scaled), -half, half - 1).astype(np.int32)


def advance(
    detector: Detector, state: State, codes: np.ndarray
) -> tuple[State, np.ndarray, np.ndarray | None]:
    """The state after `codes` (`input_codes` [frames, mels]), and what the output layers say at each step.

    These are on the grid: int32 [steps, events], those of the attention None without one.  However a
    stream is cut into pieces, the steps are the same.
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
    """Logits float32 [events] from what the output layers said at each step of a clip, on the grid."""
    logits = outputs / 2.0**GRID
    if attention is not None:
        weights = np.exp((attention - attention.max(axis=0)) / 2.0**GRID)
        logits = (weights * logits).sum(axis=0) / weights.sum(axis=0)
    else:
        logits = logits[-1] if pooling == "last" else logits.mean(axis=0)
    return logits.astype(np.float32)


def _convolve(conv: ConvCodes, x: np.ndarray, stride: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The steps that the frames of x allow, [steps, bands / 2, outputs], and the frames not done with."""
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
    codes = _shift(_rescaled(acc, conv.multiplier) + conv.bias, MARGIN)
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
    c = _shift(f * cell.c, GATE) + _shift(i * candidate, 2 * GATE - layer.cell)
    c = np.clip(c, -(1 << (CELL - 1)), (1 << (CELL - 1)) - 1)
    on_grid = _shift(c, layer.cell - GRID) if layer.cell > GRID else c << (GRID - layer.cell)
    h = _shift(o * _tanh(on_grid), 2 * GATE - (bits - 1))
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
    return _SIGMOID[np.clip(z, -LIMIT, LIMIT) + LIMIT]


def _tanh(z: np.ndarray) -> np.ndarray:
    """2 σ(2 z) - 1."""
    return 2 * _sigmoid(2 * z) - (1 << GATE)
