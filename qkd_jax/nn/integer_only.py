"""The integer scheme in JAX: what a device computes, code for code, and gradients straight through it.

Floats to codes (`conv_codes`, `lstm_codes`, `linear_codes`), for training and for export alike, and
arithmetic on codes, whose definition is `qkd_jax.detector.reference`.  Codes of weights are held in float32,
where sums are exact below 2^24 (export checks that those of its weights are), or in int8, with sums in int32.

Beside what `qkd_jax.nn.lstm` says, a layer of an LSTM has `exponents`: int32 [2], of the units 2^-exponent
of its inputs and of its cell.  h is in units of 2^-(activations - 1).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qkd_jax.config import QuantConfig
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
from qkd_jax.nn.lstm_cell import Cell, Layer, LSTMState, Slopes
from qkd_jax.quant.static import power_of_two, signed, symmetric

Codes = Int[Array, "..."]


def normalized(
    x: Float[Array, "*batch mel"], mean: Float[Array, " mel"], std: Float[Array, " mel"]
) -> Float[Array, "*batch mel"]:
    """(x - mean) / std, divided as NumPy divides; XLA would multiply by the reciprocal of a constant."""
    terms = tuple(jnp.broadcast_to(term, x.shape) for term in (mean, std))
    mean, std = jax.lax.optimization_barrier(terms)
    return (x - mean) / std


def conv_codes(
    w: Float[Array, "taps bands channels outputs"],
    gain: Float[Array, " outputs"],
    shift: Float[Array, " outputs"],
    x_exponent: Int[Array, ""],
    exponent: Int[Array, ""],
    bits: int,
) -> ConvCodes:
    """A convolution of `w`, its outputs then times `gain` plus `shift` (batch-norm, folded).

    Its input is in units of 2^-x_exponent, its output in units of 2^-exponent.
    """
    codes, scale = symmetric(w, bits)
    gain, shift = jax.lax.stop_gradient(jax.lax.optimization_barrier((gain, shift)))
    multiplier = scale * gain * power_of_two(exponent + MARGIN - x_exponent)
    return ConvCodes(codes, jax.lax.optimization_barrier(multiplier), _rounded(shift, exponent + MARGIN))


def lstm_codes(layer: Layer, quant: QuantConfig) -> LSTMCodes:
    """A layer of an LSTM."""
    units = layer["b"].shape[0] // 4
    x_exponent, cell = layer["exponents"]
    w_h, scale_h = symmetric(layer["w"][:units], quant.weights)
    w_x, scale_x = symmetric(layer["w"][units:], quant.weights)
    return LSTMCodes(
        w_h,
        w_x,
        scale_h * power_of_two(jnp.int32(GRID - (quant.activations - 1))),
        scale_x * power_of_two(GRID - x_exponent),
        _rounded(layer["b"], jnp.int32(GRID)),
        cell,
    )


def linear_codes(
    w: Float[Array, "units events"], b: Float[Array, " events"], quant: QuantConfig
) -> LinearCodes:
    """An output layer, of h."""
    codes, scale = symmetric(w, quant.output)
    multiplier = scale * power_of_two(jnp.int32(GRID - (quant.activations - 1)))
    return LinearCodes(codes, multiplier, _rounded(b, jnp.int32(GRID)))


def _rounded(b: jax.Array, exponent: jax.Array) -> jax.Array:
    return jnp.round(jax.lax.stop_gradient(b) * power_of_two(exponent)).astype(jnp.int32)


def convolve(conv: ConvCodes, x: Codes, stride: int, bits: int) -> Codes:
    """The codes of `bits` bits after ReLU, [batch, steps, bands / 2, outputs].

    x: codes [batch, frames, bands, channels].
    """
    return jnp.clip(_uncut(conv, _sums(conv.w, x, stride)), 0, (1 << bits) - 1)


def _sums(w: jax.Array, x: jax.Array, stride: int) -> jax.Array:
    half, x = w.shape[1] // 2, _like(x, w)
    return jax.lax.conv_general_dilated(
        x,
        w.astype(x.dtype),
        (stride, 2),
        padding=((0, 0), (half, half)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=_sum_type(w),
    )


def _uncut(conv: ConvCodes, sums: jax.Array) -> Codes:
    return _shift(_rescaled(sums, conv.multiplier, conv.bias), MARGIN)


def linear(layer: LinearCodes, h: Codes) -> Codes:
    """What an output layer says of h [..., units], on the grid, [..., events]."""
    return _rescaled(_product(h, layer.w), layer.multiplier, layer.bias)


def from_inputs(layer: LSTMCodes, x: Codes) -> Codes:
    """What x [..., inputs] and the bias add to pre-activations [..., 4 · units], for all steps at once."""
    return _rescaled(_product(x, layer.w_x), layer.multiplier_x, layer.bias)


def step(
    layer: LSTMCodes, h: Codes, c: Codes, z_x: Codes, bits: int
) -> tuple[Codes, Codes, tuple[Codes, ...]]:
    """The next h and c [..., units], and the gates f, i, c~, o and tanh of c, in units of 2^-GATE.

    z_x: `from_inputs` of this step.
    """
    z = _rescaled(_product(h, layer.w_h), layer.multiplier_h) + z_x
    z_f, z_i, z_c, z_o = jnp.split(z, 4, axis=-1)
    f, i, o, candidate = _sigmoid(z_f), _sigmoid(z_i), _sigmoid(z_o), _tanh(z_c)
    c = _shift(f * c, GATE) + _shift(i * candidate, 2 * GATE - layer.cell)
    c = jnp.clip(c, *signed(CELL))
    finer = layer.cell - GRID
    on_grid = jnp.where(finer > 0, _shift(c, jnp.maximum(finer, 1)), c << jnp.maximum(-finer, 0))
    squashed = _tanh(on_grid)
    h = jnp.clip(_shift(o * squashed, 2 * GATE - (bits - 1)), *signed(bits))
    return h, c, (f, i, candidate, o, squashed)


def integer_cell(layer: Layer, quant: QuantConfig) -> Cell:
    """One layer's step, its weights made codes once; h, c and x hold codes times their units."""
    codes, bits = lstm_codes(layer, quant), quant.activations
    x_exponent, cell_exponent = layer["exponents"]
    unit = power_of_two(jnp.int32(-(bits - 1)))

    def cell(state: LSTMState, x: jax.Array) -> tuple[LSTMState, Slopes]:
        h, c, gates = step(
            codes,
            _codes(state.h, jnp.int32(bits - 1)),
            _codes(state.c, cell_exponent),
            from_inputs(codes, _codes(x, x_exponent)),
            bits,
        )
        f, i, candidate, o, squashed = (gate * 2.0**-GATE for gate in gates)
        low, high = signed(CELL)
        inside = ((c > low) & (c < high)).astype(f.dtype)
        slopes = Slopes(
            c_c=inside * f,
            c_f=inside * state.c * f * (1 - f),
            c_i=inside * candidate * i * (1 - i),
            c_candidate=inside * i * (1 - candidate**2),
            h_c=o * (1 - squashed**2),
            h_o=squashed * o * (1 - o),
        )
        return LSTMState(h * unit, c * power_of_two(-cell_exponent)), slopes

    return cell


def recovered_weights(layer: Layer, quant: QuantConfig) -> Float[Array, "inputs gates"]:
    """The weights that the codes of `layer` stand for."""
    units = layer["b"].shape[0] // 4
    parts = (symmetric(part, quant.weights) for part in (layer["w"][:units], layer["w"][units:]))
    return jnp.concatenate([codes * jnp.broadcast_to(scale, codes.shape) for codes, scale in parts])


def integer_conv(
    w: Float[Array, "taps bands channels outputs"],
    gain: Float[Array, " outputs"],
    shift: Float[Array, " outputs"],
    x: Float[Array, "batch time mel channels"],
    x_exponent: Int[Array, ""],
    exponent: Int[Array, ""],
    *,
    stride: int,
    quant: QuantConfig,
) -> Float[Array, "batch step mel2 outputs"]:
    """ReLU(gain · (w * x) + shift) as `convolve` has it: x and the result hold codes times their units.

    The gradient is that of the recovered floats, cut where the codes were.
    """
    return _conv(stride, quant, w, gain, shift, x, x_exponent, exponent)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _conv(stride, quant, w, gain, shift, x, x_exponent, exponent):
    folded = conv_codes(w, gain, shift, x_exponent, exponent, quant.weights)
    codes = convolve(folded, _codes(x, x_exponent), stride, quant.activations)
    return codes * power_of_two(-exponent)


@_conv.defjvp
def _conv_jvp(stride, quant, primals, tangents):
    (w, gain, shift, x, x_exponent, exponent), (d_w, d_gain, d_shift, d_x, *_) = primals, tangents
    folded = conv_codes(w, gain, shift, x_exponent, exponent, quant.weights)
    scale = symmetric(w, quant.weights).scale
    sums = _sums(folded.w, _codes(x, x_exponent), stride)
    codes, largest = _uncut(folded, sums), (1 << quant.activations) - 1
    gain, unit, d_gain, d_shift = (
        jnp.broadcast_to(term, sums.shape)
        for term in (gain, scale * power_of_two(-x_exponent), d_gain, d_shift)
    )
    w_hat = folded.w * jnp.broadcast_to(scale, w.shape)
    moved = gain * (_sums(d_w, x, stride) + _sums(w_hat, d_x, stride)) + d_gain * (sums * unit) + d_shift
    inside = (codes > 0) & (codes <= largest)
    return jnp.clip(codes, 0, largest) * power_of_two(-exponent), jnp.where(inside, moved, 0)


def integer_linear(
    w: Float[Array, "units events"],
    b: Float[Array, " events"],
    h: Float[Array, "*batch units"],
    quant: QuantConfig,
) -> Float[Array, "*batch events"]:
    """The output layer's logits of h, which holds codes times their unit.

    The gradient is that of the recovered floats.
    """
    return _linear(quant, w, b, h)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _linear(quant, w, b, h):
    return linear(linear_codes(w, b, quant), _codes(h, jnp.int32(quant.activations - 1))) * 2.0**-GRID


@_linear.defjvp
def _linear_jvp(quant, primals, tangents):
    (w, b, h), (d_w, d_b, d_h) = primals, tangents
    codes, scale = symmetric(w, quant.output)
    moved = _product(h, d_w) + _product(d_h, codes * jnp.broadcast_to(scale, w.shape))
    return _linear(quant, w, b, h), moved + jnp.broadcast_to(d_b, moved.shape)


def _codes(x: jax.Array, exponent: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(jnp.round(x * power_of_two(exponent))).astype(jnp.int32)


def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.matmul(
        _like(x, w), w, precision=jax.lax.Precision.HIGHEST, preferred_element_type=_sum_type(w)
    )


def _like(x: jax.Array, w: jax.Array) -> jax.Array:
    """Codes x as floats beside float codes `w`; beside int8 in 16 bits, for they may be unsigned."""
    return x.astype(w.dtype if w.dtype == jnp.float32 else jnp.int16)


def _sum_type(w: jax.Array) -> Any:
    return jnp.float32 if w.dtype == jnp.float32 else jnp.int32


def _rescaled(acc: jax.Array, multiplier: jax.Array, bias: jax.Array | int = 0) -> jax.Array:
    scaled = acc.astype(jnp.float32) * jnp.broadcast_to(multiplier, acc.shape)
    return jnp.round(scaled).astype(jnp.int32) + jnp.broadcast_to(bias, acc.shape)


def _shift(value: jax.Array, by: int | jax.Array) -> jax.Array:
    return (value + (1 << (by - 1))) >> by


def _sigmoid(z: jax.Array) -> jax.Array:
    return jnp.asarray(sigmoid_table())[jnp.clip(z, -LIMIT, LIMIT) + LIMIT]


def _tanh(z: jax.Array) -> jax.Array:
    return 2 * _sigmoid(2 * z) - (1 << GATE)
