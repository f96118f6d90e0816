"""The LSTM of Shi et al. 2019, float or with every operand quantized (eq. 5 and 6).

A layer's parameters are `{"w": [units + inputs, 4 · units], "b": [4 · units]}`: the rows of `w`
are those of [h, x], its columns the gates f, i, c~, o.  For n-bit weights, activations, gates
and cell, each with its own n,

    u  = Qn([h, x])              one range ("joint"); "split": Qn(h), Qn(x), Qn(W_gh), Qn(W_gx)
    z_g = Qn(W_g) · u + b_g      for g in f, i, c, o; one range per gate matrix
    f, i, o = Qn(σ(z_f)), Qn(σ(z_i)), Qn(σ(z_o));   c~ = Qn(tanh(z_c))
    c' = f * Qn(c) + i * c~      carried unquantized, quantized where it is used next
    h' = o * Qn(tanh(c'))        carried unquantized

with every range that of one vector of one example at one step, so that results depend neither
on batch mates, nor on padding, nor on how a stream is cut.  (Eq. 5 prints b_i in the candidate;
b_c is meant.)  Quantizing after training is calling the same functions with `quant` on
parameters trained without it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qkd_jax.config import QuantConfig
from qkd_jax.nn.matmul import quantized_matmul
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
    return _stack([_cell(layer, quant) for layer in params])(carry, x)


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
    step = _stack([_cell(layer, quant) for layer in params])

    def body(carry, inputs):
        if lengths is None:
            new = step(carry, inputs)
            return new, new[-1].h
        x_t, valid_t = inputs
        new = jax.tree.map(lambda after, before: jnp.where(valid_t, after, before), step(carry, x_t), carry)
        return new, jnp.where(valid_t, new[-1].h, 0)

    by_time = jnp.moveaxis(x, -2, 0)
    inputs = by_time if lengths is None else (by_time, jnp.moveaxis(valid, -1, 0)[..., None])
    final, outputs = jax.lax.scan(body, start, inputs)
    return jnp.moveaxis(outputs, 0, -2), final


Step = Callable[[Sequence[LSTMState], jax.Array], tuple[LSTMState, ...]]


def _stack(cells: Sequence[Callable[[LSTMState, jax.Array], LSTMState]]) -> Step:
    def step(carry: Sequence[LSTMState], x: jax.Array) -> tuple[LSTMState, ...]:
        new = []
        for cell, state in zip(cells, carry):
            new.append(cell(state, x))
            x = new[-1].h
        return tuple(new)

    return step


def _cell(layer: Layer, quant: QuantConfig) -> Callable[[LSTMState, jax.Array], LSTMState]:
    """One layer's step, its weights quantized once."""
    units = layer["b"].shape[0] // 4

    def matmul(w: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return quantized_matmul(w, x_bits=quant.activations, w_bits=quant.weights, blocks=4)

    if quant.ranges == "joint":
        joint = matmul(layer["w"])
    else:
        from_h, from_x = matmul(layer["w"][:units]), matmul(layer["w"][units:])

    def cell(state: LSTMState, x: jax.Array) -> LSTMState:
        h, c = state
        if quant.ranges == "joint":
            z = joint(jnp.concatenate([h, x.astype(h.dtype)], axis=-1))
        else:
            z = from_h(h) + from_x(x.astype(h.dtype))
        z_f, z_i, z_c, z_o = jnp.split(z + jnp.broadcast_to(layer["b"], z.shape), 4, axis=-1)
        f, i, o = (fake_quant(jax.nn.sigmoid(gate), quant.gates) for gate in (z_f, z_i, z_o))
        candidate = fake_quant(jnp.tanh(z_c), quant.gates)
        c = f * fake_quant(c, quant.cell) + i * candidate
        h = o * fake_quant(jnp.tanh(c), quant.gates)
        return LSTMState(h.astype(state.h.dtype), c.astype(state.c.dtype))

    return cell


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
