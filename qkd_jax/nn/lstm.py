"""The LSTM of Shi et al. 2019, float or with every operand quantized (eq. 5 and 6).

A layer's parameters are `{"w": [units + inputs, 4 · units], "b": [4 · units]}`: the rows of `w`
are those of [h, x], its columns the gates f, i, c~, o.  For n-bit weights, activations, gates
and cell, each with its own n,

    u  = Qn([h, x])              one range ("joint"); "split" or "channel": Qn(h), Qn(x), Qn(W_gh), Qn(W_gx)
    z_g = Qn(W_g) · u + b_g      for g in f, i, c, o; one range per gate matrix, "channel": per unit
    f, i, o = Qn(σ(z_f)), Qn(σ(z_i)), Qn(σ(z_o));   c~ = Qn(tanh(z_c))
    c' = f * Qn(c) + i * c~      carried unquantized, quantized where it is used next
    h' = o * Qn(tanh(c'))        carried unquantized

with every range that of one vector of one example at one step, so that results depend neither
on batch mates, nor on padding, nor on how a stream is cut.  (Eq. 5 prints b_i in the candidate;
b_c is meant.)  Quantizing after training is calling the same functions with `quant` on
parameters trained without it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from qkd_jax.config import QuantConfig
from qkd_jax.nn.matmul import quantized_matmul, recovered
from qkd_jax.quant.fake_quant import fake_quant

Layer = dict[str, jax.Array]
FLOAT = QuantConfig()


class LSTMState(NamedTuple):
    """What one layer carries: `h` and `c`, [*batch, units]."""

    h: jax.Array
    c: jax.Array


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
        state, _ = _cell(layer, quant)(state, x)
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


class _Slopes(NamedTuple):
    """Derivatives of one step, straight through the rounding: of c' in c and z, of h' in c' and z."""

    c_c: jax.Array
    c_f: jax.Array
    c_i: jax.Array
    c_candidate: jax.Array
    h_c: jax.Array
    h_o: jax.Array


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
    cell = _cell(layer, quant)

    def body(state, inputs):
        x_t, valid_t = inputs
        new, slopes = cell(state, x_t)
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
    w_hat = _recovered_weights(layer["w"], quant)
    u_hat = _recovered_inputs(jnp.concatenate([start.h[None], hs])[:-1], x, quant)
    units = start.h.shape[-1]
    # Flat, for otherwise its transpose would copy u_hat into another order.
    flat = u_hat.reshape(-1, u_hat.shape[-1])
    moved = product(flat, d_layer["w"]).reshape(*u_hat.shape[:-1], 4 * units)
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


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _instantiated(tangent: Any, primal: jax.Array) -> jax.Array:
    return jnp.zeros_like(primal) if _is_zero(tangent) else tangent


def _where(valid: jax.Array | None, new: LSTMState, old: LSTMState) -> LSTMState:
    return new if valid is None else jax.tree.map(partial(jnp.where, valid), new, old)


def _cell(layer: Layer, quant: QuantConfig) -> Callable[[LSTMState, jax.Array], tuple[LSTMState, _Slopes]]:
    """One layer's step, its weights quantized once."""
    units = layer["b"].shape[0] // 4

    def matmul(w: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return quantized_matmul(
            w, x_bits=quant.activations, w_bits=quant.weights, blocks=_weight_ranges(quant, units)
        )

    if quant.ranges == "joint":
        joint = matmul(layer["w"])
    else:
        from_h, from_x = matmul(layer["w"][:units]), matmul(layer["w"][units:])

    def cell(state: LSTMState, x: jax.Array) -> tuple[LSTMState, _Slopes]:
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
        slopes = _Slopes(
            c_c=f_hat,
            c_f=c_hat * f * (1 - f),
            c_i=candidate_hat * i * (1 - i),
            c_candidate=i_hat * (1 - candidate**2),
            h_c=o_hat * (1 - squashed**2),
            h_o=squashed_hat * o * (1 - o),
        )
        return LSTMState((o_hat * squashed_hat).astype(h.dtype), c.astype(state.c.dtype)), slopes

    return cell


def _recovered_weights(w: jax.Array, quant: QuantConfig) -> jax.Array:
    units = w.shape[1] // 4
    parts = (w,) if quant.ranges == "joint" else (w[:units], w[units:])
    blocks = _weight_ranges(quant, units)
    return jnp.concatenate([recovered(part, quant.weights, blocks=blocks) for part in parts])


def _weight_ranges(quant: QuantConfig, units: int) -> int:
    """How many equal blocks of columns of the weights have a range of their own."""
    return 4 * units if quant.ranges == "channel" else 4


def _recovered_inputs(h: jax.Array, x: jax.Array, quant: QuantConfig) -> jax.Array:
    x = x.astype(h.dtype)
    if quant.ranges == "joint":
        return fake_quant(jnp.concatenate([h, x], axis=-1), quant.activations)
    return jnp.concatenate([fake_quant(part, quant.activations) for part in (h, x)], axis=-1)


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
