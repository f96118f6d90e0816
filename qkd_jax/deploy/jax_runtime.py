"""A detector as a function in JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qkd_jax.deploy.detector import Detector
from qkd_jax.nn.codes import GRID
from qkd_jax.nn.integer import convolve, from_inputs, linear, normalized, step


def to_jax(
    detector: Detector,
) -> Callable[[Float[Array, "batch frames mel"]], Float[Array, "batch event"]]:
    """The pure function from log-mel energies of clips to their logits, for `jit`, `vmap` and the like.

    Its codes are those of `deploy.reference`, on CPU, GPU or TPU.
    """

    def logits(log_mel):
        outputs, attention = to_steps(detector, input_codes(detector, log_mel))
        outputs = outputs * 2.0**-GRID
        if attention is not None:
            return (jax.nn.softmax(attention * 2.0**-GRID, axis=-2) * outputs).sum(axis=-2)
        return outputs[..., -1, :] if detector.student.pooling == "last" else outputs.mean(axis=-2)

    return logits


def input_codes(
    detector: Detector, log_mel: Float[Array, "*batch frames mel"]
) -> Int[Array, "*batch frames mel"]:
    """What the first layer sees."""
    half = 2 ** (detector.student.quant.activations - 1)
    mean, std = jnp.asarray(detector.mean), jnp.asarray(detector.std)
    scaled = normalized(log_mel, mean, std) * 2.0**detector.input
    return jnp.clip(jnp.round(scaled), -half, half - 1).astype(jnp.int32)


def to_steps(
    detector: Detector, codes: Int[Array, "batch frames mel"]
) -> tuple[Int[Array, "batch step event"], Int[Array, "batch step event"] | None]:
    """What the output layers say at each step, on the grid; those of the attention None without one."""
    bits = detector.student.quant.activations
    x = codes[..., None]
    for index, conv in enumerate(detector.front):
        x = convolve(_in_float(conv), x, detector.student.stride(index), bits)
    x = jnp.moveaxis(x.reshape(*x.shape[:2], -1), 1, 0)
    for layer in map(_in_float, detector.lstm):

        def body(cell, z_x, layer=layer):
            h, c, _ = step(layer, cell[0], cell[1], z_x, bits)
            return (h, c), h

        zeros = jnp.zeros((x.shape[1], layer.w_h.shape[0]), jnp.int32)
        _, x = jax.lax.scan(body, (zeros, zeros), from_inputs(layer, x))
    x = jnp.moveaxis(x, 0, 1)
    attention = None if detector.attention is None else linear(_in_float(detector.attention), x)
    return linear(_in_float(detector.output), x), attention


def _in_float(codes: Any) -> Any:
    """Arrays of JAX, weights in float32: products are then faster, and as exact for a detector."""
    arrays = jax.tree.map(jnp.asarray, codes)
    return arrays._replace(
        **{name: getattr(arrays, name).astype(jnp.float32) for name in codes._fields if name[0] == "w"}
    )
