"""A GRU (Cho et al. 2014, in torch's form) over time, in float or with every operand quantized.

The parameters of one layer in one direction are `{"w_h": [hidden_size, 3 · hidden_size], "w_x": [inputs,
3 · hidden_size], "b": [3 · hidden_size], "b_h": [hidden_size]}`, with columns for the gates r, z, n.
Quantized, it follows `lstm_cell`: weights, activations, gates and cell have n bits, each its own n,

    r, z = Qn(σ(z_r)), Qn(σ(z_z));   z_g = Qn(W_gh) · Qn(h) + Qn(W_gx) · Qn(x) + b_g
    n  = Qn(tanh(Qn(W_nx) · Qn(x) + b_n + r * (Qn(W_nh) · Qn(h) + b_h)))
    h' = (1 - z) * n + z * Qn(h)           carried unquantized, quantized where it is used next

where every range is that of one vector of one example at one step; a matrix has one range, or with ranges
"channel" one per column.  h and x always have separate ranges ("split"), because the candidate n needs
W_nh · h alone.  Qn(h) has the bits of activations in the products, and those of the cell in the last line.

torch's GRU has a second bias for all three gates.  For r and z only the sum of both matters, so ours has it
for the candidate alone: the same functions with 2 · hidden_size fewer parameters.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.config import QuantConfig
from qkd_jax.nn.lstm_cell import Layer
from qkd_jax.nn.matmul import quantized_matmul
from qkd_jax.quant.fake_quant import fake_quant

FLOAT = QuantConfig()


def gru_init(key: jax.Array, inputs: int, hidden_size: int, *, dtype: jnp.dtype = jnp.float32) -> Layer:
    """Initialize parameters: orthogonal recurrent weights, others of variance 1 / inputs, zero biases."""
    orthogonal, normal = jax.nn.initializers.orthogonal(), jax.nn.initializers.lecun_normal()
    *recurrent, from_x = jax.random.split(key, 4)
    return {
        "w_h": jnp.concatenate(
            [orthogonal(gate, (hidden_size, hidden_size), dtype) for gate in recurrent], axis=1
        ),
        "w_x": normal(from_x, (inputs, 3 * hidden_size), dtype),
        "b": jnp.zeros(3 * hidden_size, dtype),
        "b_h": jnp.zeros(hidden_size, dtype),
    }


def gru_step(
    params: Layer,
    carry: Float[Array, "*batch hidden"] | None,
    x: Float[Array, "*batch inputs"],
    *,
    quant: QuantConfig = FLOAT,
) -> Float[Array, "*batch hidden"]:
    """Compute one step: the next h, which is both output and next carry; a `carry` of None is zeros.

    Every call quantizes the weights again; `gru_scan` does it once.  Raises ValueError if shapes don't fit.
    """
    z_x = _from_inputs(params, x, quant)
    return _cell(params, quant)(_start(params, carry, z_x), z_x)


def gru_scan(
    params: Layer,
    x: Float[Array, "*batch time inputs"],
    *,
    quant: QuantConfig = FLOAT,
    reverse: bool = False,
    carry: Float[Array, "*batch hidden"] | None = None,
) -> tuple[Float[Array, "*batch time hidden"], Float[Array, "*batch hidden"]]:
    """Compute all steps of a sequence: h after each step, and the final h.

    Equal to `gru_step` over time, from `carry` (zeros by default), so a sequence can be cut anywhere.  With
    `reverse`, it runs from the end to the beginning.  Raises ValueError if shapes don't fit.

    >>> params = gru_init(jax.random.key(0), inputs=3, hidden_size=4)
    >>> gru_scan(params, jnp.ones((2, 5, 3)))[0].shape
    (2, 5, 4)
    """
    z_x = jnp.moveaxis(_from_inputs(params, x, quant), -2, 0)
    step = _cell(params, quant)

    def body(h: jax.Array, z_x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = step(h, z_x)
        return h, h

    # Within shard_map, the start must be marked as varying over devices as z_x is: derive it from z_x.
    start = _start(params, carry, jnp.zeros_like(z_x).sum(axis=0))
    last, hs = jax.lax.scan(body, start, z_x, reverse=reverse)
    return jnp.moveaxis(hs, 0, -2), last


def _from_inputs(params: Layer, x: jax.Array, quant: QuantConfig) -> jax.Array:
    """The contribution of x to the pre-activations of the gates, with the first bias."""
    if x.shape[-1] != len(params["w_x"]):
        raise ValueError(f"x: expected {len(params['w_x'])} inputs, got {x.shape[-1]}")
    z_x = _matmul(params["w_x"], quant)(x.astype(params["w_x"].dtype))
    return z_x + jnp.broadcast_to(params["b"], z_x.shape)


def _start(params: Layer, carry: jax.Array | None, z_x: jax.Array) -> jax.Array:
    """The carry before the first step; `z_x` is the contribution of the inputs at one step."""
    shape = (*z_x.shape[:-1], len(params["w_h"]))
    if carry is None:
        return jnp.zeros_like(z_x[..., : shape[-1]])
    if carry.shape != shape:
        raise ValueError(f"carry: expected shape {shape}, got {carry.shape}")
    return carry


def _cell(params: Layer, quant: QuantConfig) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The step (h, z_x) -> h, with weights quantized once."""
    from_h = _matmul(params["w_h"], quant)

    def rounded(x: jax.Array, bits: int) -> jax.Array:
        return fake_quant(x, bits, gradient=quant.gradient)

    def cell(h: jax.Array, z_x: jax.Array) -> jax.Array:
        (h_r, h_z, h_n), (x_r, x_z, x_n) = (jnp.split(z, 3, axis=-1) for z in (from_h(h), z_x))
        r, z = (rounded(jax.nn.sigmoid(gate), quant.gates) for gate in (h_r + x_r, h_z + x_z))
        n = rounded(jnp.tanh(x_n + r * (h_n + jnp.broadcast_to(params["b_h"], h_n.shape))), quant.gates)
        return ((1 - z) * n + z * rounded(h, quant.cell)).astype(h.dtype)

    return cell


def _matmul(w: jax.Array, quant: QuantConfig) -> Callable[[jax.Array], jax.Array]:
    blocks = w.shape[1] if quant.ranges == "channel" else 3
    return quantized_matmul(
        w, x_bits=quant.activations, w_bits=quant.weights, blocks=blocks, gradient=quant.gradient
    )
