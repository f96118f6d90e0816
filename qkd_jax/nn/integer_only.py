"""The integer-only scheme in JAX: a device's computation, code for code, with straight-through gradients.

`conv_codes`, `lstm_codes` and `linear_codes` turn floats into codes, in training and in export alike.  The
arithmetic on codes is defined by `qkd_jax.detector.reference`.  Codes of weights are held in float32, where
sums are exact below 2^24 (export checks that its sums are), or in int8, with sums in int32.

Beside the parameters that `qkd_jax.nn.lstm` describes, a layer of an LSTM has `exponents`, int32 [2]: its
inputs and its cell state have scales of 2^-exponent.  h has a scale of 2^-(activations - 1).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qkd_jax.config import QuantConfig
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
from qkd_jax.nn.lstm_cell import Cell, Layer, LSTMState, Slopes
from qkd_jax.quant.static import power_of_two, signed_range, symmetric

Codes = Int[Array, "..."]


def normalized(
    x: Float[Array, "*batch mel"], mean: Float[Array, " mel"], std: Float[Array, " mel"]
) -> Float[Array, "*batch mel"]:
    """(x - mean) / std, divided as by NumPy; XLA would multiply by the reciprocal of a constant."""
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
    """The codes of gain · (w * x) + shift, a convolution with its batch-norm folded into `gain` and `shift`.

    The input has a scale of 2^-x_exponent, the output of 2^-exponent.
    """
    codes, scale = symmetric(w, bits)
    gain, shift = jax.lax.stop_gradient(jax.lax.optimization_barrier((gain, shift)))
    multiplier = scale * gain * power_of_two(exponent + CONV_GUARD_BITS - x_exponent)
    return ConvCodes(
        codes, jax.lax.optimization_barrier(multiplier), _rounded(shift, exponent + CONV_GUARD_BITS)
    )


def lstm_codes(layer: Layer, quant: QuantConfig) -> LSTMCodes:
    """The codes of a layer of an LSTM."""
    hidden_size = layer["b"].shape[0] // 4
    x_exponent, cell_exponent = layer["exponents"]
    w_h, scale_h = symmetric(layer["w"][:hidden_size], quant.weights)
    w_x, scale_x = symmetric(layer["w"][hidden_size:], quant.weights)
    return LSTMCodes(
        w_h,
        w_x,
        scale_h * power_of_two(jnp.int32(LOGIT_EXPONENT - (quant.activations - 1))),
        scale_x * power_of_two(LOGIT_EXPONENT - x_exponent),
        _rounded(layer["b"], jnp.int32(LOGIT_EXPONENT)),
        cell_exponent,
    )


def linear_codes(
    w: Float[Array, "hidden events"], b: Float[Array, " events"], quant: QuantConfig
) -> LinearCodes:
    """The codes of an output layer, which reads h."""
    codes, scale = symmetric(w, quant.output)
    multiplier = scale * power_of_two(jnp.int32(LOGIT_EXPONENT - (quant.activations - 1)))
    return LinearCodes(codes, multiplier, _rounded(b, jnp.int32(LOGIT_EXPONENT)))


def _rounded(b: jax.Array, exponent: jax.Array) -> jax.Array:
    return jnp.round(jax.lax.stop_gradient(b) * power_of_two(exponent)).astype(jnp.int32)


def convolve(conv: ConvCodes, x: Codes, stride: int, bits: int) -> Codes:
    """The codes of `bits` bits after ReLU, [batch, steps, bands / 2, outputs].

    x: codes [batch, frames, bands, channels].
    """
    return jnp.clip(_unclipped(conv, _sums(conv.w, x, stride)), 0, (1 << bits) - 1)


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


def _unclipped(conv: ConvCodes, sums: jax.Array) -> Codes:
    return _shift(_rescaled(sums, conv.multiplier, conv.bias), CONV_GUARD_BITS)


def linear(layer: LinearCodes, h: Codes) -> Codes:
    """An output layer's codes [..., events], of scale 2^-LOGIT_EXPONENT, for h [..., hidden_size]."""
    return _rescaled(_product(h, layer.w), layer.multiplier, layer.bias)


def from_inputs(layer: LSTMCodes, x: Codes) -> Codes:
    """The share of x [..., inputs] and the bias in z [..., 4 · hidden_size], for all steps at once."""
    return _rescaled(_product(x, layer.w_x), layer.multiplier_x, layer.bias)


def step(
    layer: LSTMCodes, h: Codes, c: Codes, z_x: Codes, bits: int
) -> tuple[Codes, Codes, tuple[Codes, ...]]:
    """The next h and c [..., hidden_size], and codes of f, i, c~, o, tanh(c) of scale 2^-GATE_EXPONENT.

    z_x: `from_inputs` of this step.
    """
    z = _rescaled(_product(h, layer.w_h), layer.multiplier_h) + z_x
    z_f, z_i, z_c, z_o = jnp.split(z, 4, axis=-1)
    f, i, o, candidate = _sigmoid(z_f), _sigmoid(z_i), _sigmoid(z_o), _tanh(z_c)
    c = _shift(f * c, GATE_EXPONENT) + _shift(i * candidate, 2 * GATE_EXPONENT - layer.cell_exponent)
    c = jnp.clip(c, *signed_range(CELL_BITS))
    # The exponent is traced in training, so both shifts are computed; maximum keeps the unused one valid.
    finer = layer.cell_exponent - LOGIT_EXPONENT
    rescaled = jnp.where(finer > 0, _shift(c, jnp.maximum(finer, 1)), c << jnp.maximum(-finer, 0))
    squashed = _tanh(rescaled)
    h = jnp.clip(_shift(o * squashed, 2 * GATE_EXPONENT - (bits - 1)), *signed_range(bits))
    return h, c, (f, i, candidate, o, squashed)


def integer_cell(layer: Layer, quant: QuantConfig) -> Cell:
    """One layer's step, for weights that are quantized once; h, c and x hold codes times their scales."""
    codes, bits = lstm_codes(layer, quant), quant.activations
    x_exponent, cell_exponent = layer["exponents"]
    h_scale = power_of_two(jnp.int32(-(bits - 1)))

    def cell(state: LSTMState, x: jax.Array) -> tuple[LSTMState, Slopes]:
        h, c, gates = step(
            codes,
            _codes(state.h, jnp.int32(bits - 1)),
            _codes(state.c, cell_exponent),
            from_inputs(codes, _codes(x, x_exponent)),
            bits,
        )
        f, i, candidate, o, squashed = (gate * power_of_two(jnp.int32(-GATE_EXPONENT)) for gate in gates)
        low, high = signed_range(CELL_BITS)
        # The slopes of sigmoid and tanh come from their values, σ' = σ (1 - σ) and tanh' = 1 - tanh².
        inside = ((c > low) & (c < high)).astype(f.dtype)
        slopes = Slopes(
            c_c=inside * f,
            c_f=inside * state.c * f * (1 - f),
            c_i=inside * candidate * i * (1 - i),
            c_candidate=inside * i * (1 - candidate**2),
            h_c=o * (1 - squashed**2),
            h_o=squashed * o * (1 - o),
        )
        return LSTMState(h * h_scale, c * power_of_two(-cell_exponent)), slopes

    return cell


def recovered_weights(layer: Layer, quant: QuantConfig) -> Float[Array, "inputs gates"]:
    """The weights that the codes of `layer` stand for."""
    hidden_size = layer["b"].shape[0] // 4
    parts = (symmetric(part, quant.weights) for part in (layer["w"][:hidden_size], layer["w"][hidden_size:]))
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
    """ReLU(gain · (w * x) + shift) as `convolve` computes it; x and the result hold codes times their scales.

    The gradient is that of the recovered floats, and 0 where codes are clipped.
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
    codes, largest = _unclipped(folded, sums), (1 << quant.activations) - 1
    gain, sum_scale, d_gain, d_shift = (
        jnp.broadcast_to(term, sums.shape)
        for term in (gain, scale * power_of_two(-x_exponent), d_gain, d_shift)
    )
    # The derivative of gain · (w * x) + shift, by the product rule; `sums * sum_scale` is w * x.
    w_hat = folded.w * jnp.broadcast_to(scale, w.shape)
    tangent = (
        gain * (_sums(d_w, x, stride) + _sums(w_hat, d_x, stride)) + d_gain * (sums * sum_scale) + d_shift
    )
    inside = (codes > 0) & (codes <= largest)
    return jnp.clip(codes, 0, largest) * power_of_two(-exponent), jnp.where(inside, tangent, 0)


def integer_linear(
    w: Float[Array, "hidden events"],
    b: Float[Array, " events"],
    h: Float[Array, "*batch hidden"],
    quant: QuantConfig,
) -> Float[Array, "*batch events"]:
    """The output layer's logits for h, which holds codes times their scale.

    The gradient is that of the recovered floats.
    """
    return _linear(quant, w, b, h)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _linear(quant, w, b, h):
    codes = linear(linear_codes(w, b, quant), _codes(h, jnp.int32(quant.activations - 1)))
    return codes * power_of_two(jnp.int32(-LOGIT_EXPONENT))


@_linear.defjvp
def _linear_jvp(quant, primals, tangents):
    (w, b, h), (d_w, d_b, d_h) = primals, tangents
    codes, scale = symmetric(w, quant.output)
    tangent = _product(h, d_w) + _product(d_h, codes * jnp.broadcast_to(scale, w.shape))
    return _linear(quant, w, b, h), tangent + jnp.broadcast_to(d_b, tangent.shape)


def _codes(x: jax.Array, exponent: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(jnp.round(x * power_of_two(exponent))).astype(jnp.int32)


def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.matmul(
        _like(x, w), w, precision=jax.lax.Precision.HIGHEST, preferred_element_type=_sum_type(w)
    )


def _like(x: jax.Array, w: jax.Array) -> jax.Array:
    """Codes x in float32 for float32 codes `w`; in int16 for int8, since codes x may be unsigned."""
    return x.astype(w.dtype if w.dtype == jnp.float32 else jnp.int16)


def _sum_type(w: jax.Array) -> Any:
    return jnp.float32 if w.dtype == jnp.float32 else jnp.int32


def _rescaled(acc: jax.Array, multiplier: jax.Array, bias: jax.Array | int = 0) -> jax.Array:
    scaled = acc.astype(jnp.float32) * jnp.broadcast_to(multiplier, acc.shape)
    return jnp.round(scaled).astype(jnp.int32) + jnp.broadcast_to(bias, acc.shape)


def _shift(value: jax.Array, by: int | jax.Array) -> jax.Array:
    return (value + (1 << (by - 1))) >> by


def _sigmoid(z: jax.Array) -> jax.Array:
    return jnp.asarray(sigmoid_table())[jnp.clip(z, -TABLE_LIMIT, TABLE_LIMIT) + TABLE_LIMIT]


def _tanh(z: jax.Array) -> jax.Array:
    return 2 * _sigmoid(2 * z) - (1 << GATE_EXPONENT)
