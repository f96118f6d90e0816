"""A step of the LSTM of Shi et al. 2019, float or with every operand quantized (eq. 5 and 6).

For n-bit weights, activations, gates and cell, each with its own n,

    u  = Qn([h, x])              one range ("joint"); "split" or "channel": Qn(h), Qn(x), Qn(W_gh), Qn(W_gx)
    z_g = Qn(W_g) · u + b_g      for g in f, i, c, o; one range per gate matrix, "channel": per unit
    f, i, o = Qn(σ(z_f)), Qn(σ(z_i)), Qn(σ(z_o));   c~ = Qn(tanh(z_c))
    c' = f * Qn(c) + i * c~      carried unquantized, quantized where it is used next
    h' = o * Qn(tanh(c'))        carried unquantized

with every range that of one vector of one example at one step, so that results depend neither
on batch mates, nor on padding, nor on how a stream is cut.  (Eq. 5 prints b_i in the candidate;
b_c is meant.)
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
    """What one layer carries: `h` and `c`, [*batch, units]."""

    h: jax.Array
    c: jax.Array


class Slopes(NamedTuple):
    """Derivatives of one step, straight through the rounding: of c' in c and z, of h' in c' and z."""

    c_c: jax.Array
    c_f: jax.Array
    c_i: jax.Array
    c_candidate: jax.Array
    h_c: jax.Array
    h_o: jax.Array


Cell: TypeAlias = Callable[[LSTMState, jax.Array], tuple[LSTMState, Slopes]]


def paper_cell(layer: Layer, quant: QuantConfig) -> Cell:
    """One layer's step by the equations above, its weights quantized once."""
    units = layer["b"].shape[0] // 4

    def matmul(w: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return quantized_matmul(
            w, x_bits=quant.activations, w_bits=quant.weights, blocks=_weight_ranges(quant, units)
        )

    if quant.ranges == "joint":
        joint = matmul(layer["w"])
    else:
        from_h, from_x = matmul(layer["w"][:units]), matmul(layer["w"][units:])

    def cell(state: LSTMState, x: jax.Array) -> tuple[LSTMState, Slopes]:
        h, c = state
        if quant.ranges == "joint":
            z = joint(jnp.concatenate([h, x.astype(h.dtype)], axis=-1))
        else:
            z = from_h(h) + from_x(x.astype(h.dtype))
        z_f, z_i, z_c, z_o = jnp.split(z + jnp.broadcast_to(layer["b"], z.shape), 4, axis=-1)
        f, i, o, candidate = (*map(jax.nn.sigmoid, (z_f, z_i, z_o)), jnp.tanh(z_c))
        f_hat, i_hat, o_hat, candidate_hat = (fake_quant(gate, quant.gates) for gate in (f, i, o, candidate))
        c_hat = fake_quant(c, quant.cell)
        c = f_hat * c_hat + i_hat * candidate_hat
        squashed = jnp.tanh(c)
        squashed_hat = fake_quant(squashed, quant.gates)
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
    """Qn(W) of all gates."""
    w, units = layer["w"], layer["b"].shape[0] // 4
    parts = (w,) if quant.ranges == "joint" else (w[:units], w[units:])
    blocks = _weight_ranges(quant, units)
    return jnp.concatenate([recovered(part, quant.weights, blocks=blocks) for part in parts])


def recovered_inputs(h: jax.Array, x: jax.Array, quant: QuantConfig) -> jax.Array:
    """Qn([h, x]) at each step."""
    x = x.astype(h.dtype)
    if quant.ranges == "joint":
        return fake_quant(jnp.concatenate([h, x], axis=-1), quant.activations)
    return jnp.concatenate([fake_quant(part, quant.activations) for part in (h, x)], axis=-1)


def _weight_ranges(quant: QuantConfig, units: int) -> int:
    """How many equal blocks of columns of the weights have a range of their own."""
    return 4 * units if quant.ranges == "channel" else 4
