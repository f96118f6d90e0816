"""One step of the LSTM of Shi et al. 2019, in float or with every operand quantized (eq. 5 and 6).

Weights, activations, gates and cell have n bits, each its own n:

    u  = Qn([h, x])              one range ("joint"); "split", "channel": Qn(h), Qn(x), Qn(W_gh), Qn(W_gx)
    z_g = Qn(W_g) · u + b_g      for g in f, i, c, o; one range per gate matrix, "channel": per column
    f, i, o = Qn(σ(z_f)), Qn(σ(z_i)), Qn(σ(z_o));   c~ = Qn(tanh(z_c))
    c' = f * Qn(c) + i * c~      carried unquantized, quantized where it is used next
    h' = o * Qn(tanh(c'))        carried unquantized

Every range is that of one vector of one example at one step, so results don't depend on the other examples
of a batch, on padding, or on the cuts of a stream.  (Eq. 5 prints b_i in the candidate; b_c is meant.)
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from qkd_jax.config import QuantConfig
from qkd_jax.nn.matmul import quantized_matmul, recovered
from qkd_jax.quant.fake_quant import fake_quant

Layer: TypeAlias = dict[str, jax.Array]


class LSTMState(NamedTuple):
    """The state of one layer: `h` and `c`, each [*batch, hidden_size]."""

    h: jax.Array
    c: jax.Array


class Slopes(NamedTuple):
    """Partial derivatives of one step, with the identity through the rounding (eq. 4).

    `y_x` is the derivative of the next y in x, where a gate is named for its pre-activation z.  The factor
    beside the differentiated one is the quantized value of the forward pass.
    """

    c_c: jax.Array  # f
    c_f: jax.Array  # c σ'(z_f), where σ' = σ (1 - σ)
    c_i: jax.Array  # c~ σ'(z_i)
    c_candidate: jax.Array  # i tanh'(z_c), where tanh' = 1 - tanh²
    h_c: jax.Array  # o tanh'(c'), in the new c'
    h_o: jax.Array  # tanh(c') σ'(z_o)


Cell: TypeAlias = Callable[[LSTMState, jax.Array], tuple[LSTMState, Slopes]]


def paper_cell(layer: Layer, quant: QuantConfig) -> Cell:
    """The step of one layer by the equations above, with weights quantized once."""
    hidden_size = layer["b"].shape[0] // 4

    def matmul(w: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return quantized_matmul(
            w,
            x_bits=quant.activations,
            w_bits=quant.weights,
            blocks=_weight_ranges(quant, hidden_size),
            gradient=quant.gradient,
        )

    def rounded(x: jax.Array, bits: int) -> jax.Array:
        return fake_quant(x, bits, gradient=quant.gradient)

    if quant.ranges == "joint":
        joint = matmul(layer["w"])
    else:
        from_h, from_x = matmul(layer["w"][:hidden_size]), matmul(layer["w"][hidden_size:])

    def cell(state: LSTMState, x: jax.Array) -> tuple[LSTMState, Slopes]:
        h, c = state
        if quant.ranges == "joint":
            z = joint(jnp.concatenate([h, x.astype(h.dtype)], axis=-1))
        else:
            z = from_h(h) + from_x(x.astype(h.dtype))
        z_f, z_i, z_c, z_o = jnp.split(z + jnp.broadcast_to(layer["b"], z.shape), 4, axis=-1)
        f, i, o, candidate = (*map(jax.nn.sigmoid, (z_f, z_i, z_o)), jnp.tanh(z_c))
        f_hat, i_hat, o_hat, candidate_hat = (rounded(gate, quant.gates) for gate in (f, i, o, candidate))
        c_hat = rounded(c, quant.cell)
        c = f_hat * c_hat + i_hat * candidate_hat
        squashed = jnp.tanh(c)
        squashed_hat = rounded(squashed, quant.gates)
        slopes = Slopes(
            c_c=f_hat,
            c_f=c_hat * f * (1 - f),
            c_i=candidate_hat * i * (1 - i),
            c_candidate=i_hat * (1 - candidate**2),
            h_c=o_hat * (1 - squashed**2),
            h_o=squashed_hat * o * (1 - o),
        )
        return LSTMState((o_hat * squashed_hat).astype(h.dtype), c.astype(state.c.dtype)), slopes

    return cell


def recovered_weights(layer: Layer, quant: QuantConfig) -> jax.Array:
    """Qn(W) of all gates, [hidden_size + inputs, 4 · hidden_size]."""
    w, hidden_size = layer["w"], layer["b"].shape[0] // 4
    parts = (w,) if quant.ranges == "joint" else (w[:hidden_size], w[hidden_size:])
    blocks = _weight_ranges(quant, hidden_size)
    return jnp.concatenate([recovered(part, quant.weights, blocks=blocks) for part in parts])


def recovered_inputs(h: jax.Array, x: jax.Array, quant: QuantConfig) -> jax.Array:
    """Qn([h, x]), or [Qn(h), Qn(x)], at each step."""
    x = x.astype(h.dtype)
    if quant.ranges == "joint":
        return fake_quant(jnp.concatenate([h, x], axis=-1), quant.activations)
    return jnp.concatenate([fake_quant(part, quant.activations) for part in (h, x)], axis=-1)


def _weight_ranges(quant: QuantConfig, hidden_size: int) -> int:
    """Number of equal blocks of columns of the weights, with one range each."""
    return 4 * hidden_size if quant.ranges == "channel" else 4
