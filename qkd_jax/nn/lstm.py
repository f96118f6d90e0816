"""The LSTM of Shi et al. 2019 over time, float or quantized (`qkd_jax.nn.lstm_cell`, `qkd_jax.nn.integer_only`).

A layer's parameters are `{"w": [units + inputs, 4 · units], "b": [4 · units]}`: the rows of `w`
are those of [h, x], its columns the gates f, i, c~, o; in the integer scheme they have its `exponents` too.
Quantizing after training is calling the same functions with `quant` on parameters trained without it.
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
    key: jax.Array, inputs: int, units: int, layers: int = 1, *, steps: int, dtype: jnp.dtype = jnp.float32
) -> tuple[Layer, ...]:
    """New parameters, a dict for each layer, for sequences of about `steps` steps.

    Chrono initialization (Tallec & Ollivier 2018): forget bias log U[1, steps - 1], input bias
    its negative, so that the last state can remember the whole clip; with a forget bias of 1
    a reader of the last of 998 states learns nothing.  Recurrent weights are orthogonal, the
    others of variance 1 / inputs.
    """
    orthogonal, normal = jax.nn.initializers.orthogonal(), jax.nn.initializers.lecun_normal()

    def layer(key: jax.Array, inputs: int) -> Layer:
        *recurrent, from_x, from_u = jax.random.split(key, 6)
        w_h = jnp.concatenate([orthogonal(gate, (units, units), dtype) for gate in recurrent], axis=1)
        w_x = normal(from_x, (inputs, 4 * units), dtype)
        forget = jnp.log(jax.random.uniform(from_u, (units,), dtype, 1, max(steps - 1, 1)))
        zeros = jnp.zeros(2 * units, dtype)
        return {"w": jnp.concatenate([w_h, w_x]), "b": jnp.concatenate([forget, -forget, zeros])}

    keys = jax.random.split(key, layers)
    return tuple(layer(key, units if index else inputs) for index, key in enumerate(keys))


def lstm_zeros(params: Sequence[Layer], batch: tuple[int, ...] = ()) -> tuple[LSTMState, ...]:
    """The carry before the first step: zeros [*batch, units] for each layer."""
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
    """One step of all layers: the next carry, whose last `h` is the output.

    `carry` is what the last step returned, None before the first.  The weights are quantized
    anew in every call; `lstm_scan` does it once.  Raises ValueError if shapes don't fit.
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
) -> tuple[Float[Array, "*batch time units"], tuple[LSTMState, ...]]:
    """All steps of a sequence: the top layer's outputs, and the carry after the last step.

    Equal to `lstm_step` over time, from `carry` (default zeros): a sequence may be cut anywhere.
    With `lengths`, a sequence ends after its own number of steps: its carry stays what it was
    then, its outputs are zeros, and what stands in the padding (even NaN) changes nothing.
    Raises ValueError if shapes don't fit.
    """
    batch = x.shape[:-2]
    start = lstm_zeros(params, batch) if carry is None else tuple(carry)
    _check(params, start, batch, x.shape[-1])
    if lengths is not None:
        if lengths.shape != batch:
            raise ValueError(f"lengths: expected shape {batch}, one for each sequence, got {lengths.shape}")
        valid = jax.lax.broadcasted_iota(jnp.int32, x.shape[:-1], x.ndim - 2) < lengths[..., None]
        # Zeroed, not only skipped: a gradient of 0 times NaN would be NaN.
        x = jnp.where(valid[..., None], x, 0)
    start = _as_varied(start, (params, x, lengths))
    by_time = jnp.moveaxis(x, -2, 0)
    valid_by_time = None if lengths is None else jnp.moveaxis(valid, -1, 0)[..., None]
    final = []
    for layer, state in zip(params, start):
        by_time, state = _layer_scan(quant, layer, state, by_time, valid_by_time)
        if valid_by_time is not None:
            by_time = jnp.where(valid_by_time, by_time, 0)
        final.append(state)
    return jnp.moveaxis(by_time, 0, -2), tuple(final)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _layer_scan(
    quant: QuantConfig, layer: Layer, start: LSTMState, x: jax.Array, valid: jax.Array | None
) -> tuple[jax.Array, LSTMState]:
    """One layer's steps over x [time, *batch, inputs]: h after each, [time, *batch, units], and the carry.

    Where `valid` [time, *batch, 1] is False the carry stays what it was.
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
    """What the weights and the inputs move is one large product each, apart from the recurrence.

    Differentiating the scan itself would add up the weights' gradient step by step.  As the
    rule is linear in the tangents, JAX transposes it for the gradient.
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
    units = start.h.shape[-1]
    if jax.device_count() == 1:
        # Flat, for otherwise its transpose would copy u_hat into another order.
        flat = u_hat.reshape(-1, u_hat.shape[-1])
        moved = product(flat, d_layer["w"]).reshape(*u_hat.shape[:-1], 4 * units)
    else:
        # Flat, time and batch could not be divided among devices, and each would gather all of u_hat.
        moved = product(u_hat, d_layer["w"])
    moved += jnp.broadcast_to(d_layer["b"], moved.shape)
    if not _is_zero(tangents[2]):
        moved += product(tangents[2].astype(moved.dtype), w_hat[units:])

    def body(d, inputs):
        moved_t, slope, valid_t = inputs
        d_f, d_i, d_candidate, d_o = jnp.split(product(d.h, w_hat[:units]) + moved_t, 4, axis=-1)
        d_c = slope.c_c * d.c + slope.c_f * d_f + slope.c_i * d_i + slope.c_candidate * d_candidate
        d_h = slope.h_c * d_c + slope.h_o * d_o
        new = _where(valid_t, LSTMState(d_h.astype(d.h.dtype), d_c.astype(d.c.dtype)), d)
        return new, new.h

    d_final, d_hs = jax.lax.scan(body, d_start, (moved, slopes, valid))
    return (hs, final), (d_hs, d_final)


def _new_cell(layer: Layer, quant: QuantConfig) -> cell.Cell:
    """One layer's step, its weights quantized once."""
    return (integer.integer_cell if quant.scheme == "integer" else cell.paper_cell)(layer, quant)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _instantiated(tangent: Any, primal: jax.Array) -> jax.Array:
    return jnp.zeros_like(primal) if _is_zero(tangent) else tangent


def _where(valid: jax.Array | None, new: LSTMState, old: LSTMState) -> LSTMState:
    return new if valid is None else jax.tree.map(partial(jnp.where, valid), new, old)


def _as_varied(carry: tuple[LSTMState, ...], others: Any) -> tuple[LSTMState, ...]:
    """`carry`, marked within shard_map as varying over the devices that `others` vary over.

    A scan wants its carry to be of one type from the start; arrays made like others are of theirs.
    """
    zero = sum(jnp.zeros_like(leaf, jnp.float32).sum() for leaf in jax.tree.leaves((carry, others)))
    return jax.tree.map(lambda array: array + jnp.astype(zero, array.dtype), carry)


def _check(params: Sequence[Layer], carry: Sequence[LSTMState], batch: tuple[int, ...], inputs: int) -> None:
    if len(carry) != len(params):
        raise ValueError(f"carry: expected a state for each of {len(params)} layers, got {len(carry)}")
    for index, (layer, state) in enumerate(zip(params, carry)):
        units = layer["b"].shape[0] // 4
        if layer["w"].shape != (units + inputs, 4 * units):
            raise ValueError(
                f"layer {index}: expected w of shape ({units + inputs}, {4 * units}) for {inputs} inputs and "
                f"{units} units, got {layer['w'].shape}"
            )
        for part, array in state._asdict().items():
            if array.shape != (*batch, units):
                raise ValueError(f"layer {index}: {part}: expected {(*batch, units)}, got {array.shape}")
        inputs = units
