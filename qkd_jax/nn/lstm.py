"""The LSTM of Shi et al. 2019 over time, in float or quantized (see `lstm_cell` and `integer_only`).

The parameters of a layer are `{"w": [hidden_size + inputs, 4 · hidden_size], "b": [4 · hidden_size]}`: the
rows of `w` are those of [h, x], its columns the gates f, i, c~, o.  In the integer-only scheme a layer also
has `exponents`.  To quantize after training, call the same functions with `quant` on float parameters.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from qkd_jax.config import QuantConfig
from qkd_jax.nn import integer_only as integer
from qkd_jax.nn import lstm_cell as cell
from qkd_jax.nn.lstm_cell import Layer, LSTMState

FLOAT = QuantConfig()


def lstm_init(
    key: jax.Array,
    inputs: int,
    hidden_size: int,
    layers: int = 1,
    *,
    steps: int,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[Layer, ...]:
    """Initialize parameters, a dict per layer, for sequences of about `steps` steps.

    Chrono initialization (Tallec & Ollivier 2018): the forget bias is log U[1, steps - 1] and the input
    bias its negative, so that the last state can remember the whole clip; with a forget bias of 1, a model
    that reads only the last of 998 states does not train.  Recurrent weights are orthogonal, the others
    have variance 1 / inputs.

    >>> (layer,) = lstm_init(jax.random.key(0), inputs=64, hidden_size=256, steps=998)
    >>> layer["w"].shape
    (320, 1024)
    """
    orthogonal, normal = jax.nn.initializers.orthogonal(), jax.nn.initializers.lecun_normal()

    def layer(key: jax.Array, inputs: int) -> Layer:
        *recurrent, from_x, from_u = jax.random.split(key, 6)
        w_h = jnp.concatenate(
            [orthogonal(gate, (hidden_size, hidden_size), dtype) for gate in recurrent], axis=1
        )
        w_x = normal(from_x, (inputs, 4 * hidden_size), dtype)
        forget = jnp.log(jax.random.uniform(from_u, (hidden_size,), dtype, 1, max(steps - 1, 1)))
        zeros = jnp.zeros(2 * hidden_size, dtype)
        return {"w": jnp.concatenate([w_h, w_x]), "b": jnp.concatenate([forget, -forget, zeros])}

    keys = jax.random.split(key, layers)
    return tuple(layer(key, hidden_size if index else inputs) for index, key in enumerate(keys))


def lstm_zeros(params: Sequence[Layer], batch: tuple[int, ...] = ()) -> tuple[LSTMState, ...]:
    """The carry before the first step: zeros [*batch, hidden_size] for each layer.

    >>> params = lstm_init(jax.random.key(0), inputs=3, hidden_size=4, steps=10)
    >>> lstm_zeros(params, (2,))[0].c.shape
    (2, 4)
    """
    shapes = ((*batch, layer["b"].shape[0] // 4) for layer in params)
    return tuple(
        LSTMState(jnp.zeros(shape, layer["b"].dtype), jnp.zeros(shape, layer["b"].dtype))
        for shape, layer in zip(shapes, params)
    )


def lstm_step(
    params: Sequence[Layer],
    carry: Sequence[LSTMState] | None,
    x: Float[Array, "*batch inputs"],
    *,
    quant: QuantConfig = FLOAT,
) -> tuple[LSTMState, ...]:
    """Compute one step of all layers: the next carry, whose last `h` is the output.

    `carry` is the result of the previous step, or None before the first.  Every call quantizes the weights
    again; `lstm_scan` does it once.  Raises ValueError if shapes don't fit.

    >>> params = lstm_init(jax.random.key(0), inputs=3, hidden_size=4, steps=10)
    >>> lstm_step(params, None, jnp.ones((2, 3)))[-1].h.shape
    (2, 4)
    """
    carry = lstm_zeros(params, x.shape[:-1]) if carry is None else carry
    _check(params, carry, x.shape[:-1], x.shape[-1])
    new = []
    for layer, state in zip(params, carry):
        state, _ = _new_cell(layer, quant)(state, x)
        new.append(state)
        x = state.h
    return tuple(new)


def lstm_scan(
    params: Sequence[Layer],
    x: Float[Array, "*batch time inputs"],
    *,
    quant: QuantConfig = FLOAT,
    carry: Sequence[LSTMState] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
) -> tuple[Float[Array, "*batch time hidden"], tuple[LSTMState, ...]]:
    """Compute all steps of a sequence: the outputs of the top layer, and the carry after the last step.

    Equal to `lstm_step` over time, from `carry` (zeros by default), so a sequence can be cut anywhere.
    With `lengths`, each sequence ends after its number of steps: its carry is kept, later outputs are
    zero, and the padding, even NaN, affects nothing.  Raises ValueError if shapes don't fit.

    >>> params = lstm_init(jax.random.key(0), inputs=3, hidden_size=4, steps=10)
    >>> outputs, carry = lstm_scan(params, jnp.ones((2, 10, 3)))
    >>> outputs.shape
    (2, 10, 4)
    """
    batch = x.shape[:-2]
    start = lstm_zeros(params, batch) if carry is None else tuple(carry)
    _check(params, start, batch, x.shape[-1])
    if lengths is not None:
        if lengths.shape != batch:
            raise ValueError(f"lengths: expected shape {batch}, one for each sequence, got {lengths.shape}")
        valid = jax.lax.broadcasted_iota(jnp.int32, x.shape[:-1], x.ndim - 2) < lengths[..., None]
        # Skipping the padding isn't enough: its gradient, 0 times NaN, would be NaN.
        x = jnp.where(valid[..., None], x, 0)
    start = _as_varied(start, (params, x, lengths))
    by_time = jnp.moveaxis(x, -2, 0)
    valid_by_time = None if lengths is None else jnp.moveaxis(valid, -1, 0)[..., None]
    final = []
    for layer, state in zip(params, start):
        if quant.gradient == "identity":
            by_time, state = _layer_scan(quant, layer, state, by_time, valid_by_time)
        else:  # the rule of `_layer_scan` is that of the identity
            by_time, state, _ = _run(quant, layer, state, by_time, valid_by_time)
        if valid_by_time is not None:
            by_time = jnp.where(valid_by_time, by_time, 0)
        final.append(state)
    return jnp.moveaxis(by_time, 0, -2), tuple(final)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _layer_scan(
    quant: QuantConfig, layer: Layer, start: LSTMState, x: jax.Array, valid: jax.Array | None
) -> tuple[jax.Array, LSTMState]:
    """Scan one layer over x [time, *batch, inputs]: h at each step, [time, *batch, hidden], and the carry.

    Where `valid` [time, *batch, 1] is False, the carry is kept.
    """
    hs, final, _ = _run(quant, layer, start, x, valid)
    return hs, final


def _run(quant, layer, start, x, valid):
    step = _new_cell(layer, quant)

    def body(state, inputs):
        x_t, valid_t = inputs
        new, slopes = step(state, x_t)
        new = _where(valid_t, new, state)
        return new, (new.h, slopes)

    final, (hs, slopes) = jax.lax.scan(body, start, (x, valid))
    return hs, final, slopes


@partial(_layer_scan.defjvp, symbolic_zeros=True)
def _layer_scan_jvp(quant, primals, tangents):
    """Compute the effects of weights and inputs as one large product each, outside the recurrence.

    Differentiating the scan itself would accumulate the gradient of the weights step by step.  The rule is
    linear in the tangents, so JAX transposes it for the gradient.
    """
    layer, start, x, valid = primals
    d_layer, d_start = jax.tree.map(_instantiated, tangents[:2], (layer, start), is_leaf=_is_zero)
    hs, final, slopes = _run(quant, layer, start, x, valid)
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    before = jnp.concatenate([start.h[None], hs])[:-1]
    if quant.scheme == "integer":
        w_hat, u_hat = integer.recovered_weights(layer, quant), jnp.concatenate([before, x], axis=-1)
    else:
        w_hat, u_hat = cell.recovered_weights(layer, quant), cell.recovered_inputs(before, x, quant)
    hidden_size = start.h.shape[-1]
    # d_z holds the tangents of the pre-activations, except for the part that comes through h.
    if jax.device_count() == 1:
        # Flattened, because the transpose would otherwise copy u_hat into another memory order.
        flat = u_hat.reshape(-1, u_hat.shape[-1])
        d_z = product(flat, d_layer["w"]).reshape(*u_hat.shape[:-1], 4 * hidden_size)
    else:
        # Flattening would merge time with the sharded batch, and make each device gather all of u_hat.
        d_z = product(u_hat, d_layer["w"])
    d_z += jnp.broadcast_to(d_layer["b"], d_z.shape)
    if not _is_zero(tangents[2]):
        d_z += product(tangents[2].astype(d_z.dtype), w_hat[hidden_size:])

    def body(d, inputs):
        d_z_t, slope, valid_t = inputs
        d_f, d_i, d_candidate, d_o = jnp.split(product(d.h, w_hat[:hidden_size]) + d_z_t, 4, axis=-1)
        d_c = slope.c_c * d.c + slope.c_f * d_f + slope.c_i * d_i + slope.c_candidate * d_candidate
        d_h = slope.h_c * d_c + slope.h_o * d_o
        new = _where(valid_t, LSTMState(d_h.astype(d.h.dtype), d_c.astype(d.c.dtype)), d)
        return new, new.h

    d_final, d_hs = jax.lax.scan(body, d_start, (d_z, slopes, valid))
    return (hs, final), (d_hs, d_final)


def _new_cell(layer: Layer, quant: QuantConfig) -> cell.Cell:
    """The step of one layer, with weights quantized once."""
    return (integer.integer_cell if quant.scheme == "integer" else cell.paper_cell)(layer, quant)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _instantiated(tangent: Any, primal: jax.Array) -> jax.Array:
    return jnp.zeros_like(primal) if _is_zero(tangent) else tangent


def _where(valid: jax.Array | None, new: LSTMState, old: LSTMState) -> LSTMState:
    return new if valid is None else jax.tree.map(partial(jnp.where, valid), new, old)


def _as_varied(carry: tuple[LSTMState, ...], others: Any) -> tuple[LSTMState, ...]:
    """`carry`, marked within shard_map as varying over the same devices as `others`.

    A scan requires its carry to have that type from the start; adding a zero derived from `others` gives it.
    """
    zero = sum(jnp.zeros_like(leaf, jnp.float32).sum() for leaf in jax.tree.leaves((carry, others)))
    return jax.tree.map(lambda array: array + jnp.astype(zero, array.dtype), carry)


def _check(params: Sequence[Layer], carry: Sequence[LSTMState], batch: tuple[int, ...], inputs: int) -> None:
    if len(carry) != len(params):
        raise ValueError(f"carry: expected a state for each of {len(params)} layers, got {len(carry)}")
    for index, (layer, state) in enumerate(zip(params, carry)):
        hidden_size = layer["b"].shape[0] // 4
        if layer["w"].shape != (hidden_size + inputs, 4 * hidden_size):
            raise ValueError(
                f"layer {index}: expected w of shape ({hidden_size + inputs}, {4 * hidden_size}) for "
                f"{inputs} inputs and hidden_size {hidden_size}, got {layer['w'].shape}"
            )
        for part, array in state._asdict().items():
            if array.shape != (*batch, hidden_size):
                raise ValueError(
                    f"layer {index}: {part}: expected {(*batch, hidden_size)}, got {array.shape}"
                )
        inputs = hidden_size
