"""A detector as a function in JAX."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkd_jax.audio import log_mel_numpy as front_end
from qkd_jax.detector import reference
from qkd_jax.detector.codes import GRID
from qkd_jax.detector.detector import Detector
from qkd_jax.detector.stream import Cells, Runtime, in_numpy
from qkd_jax.nn.integer_only import convolve, from_inputs, linear, normalized, step


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
        return outputs[..., -1, :] if detector.network.pooling == "last" else outputs.mean(axis=-2)

    return logits


def input_codes(
    detector: Detector, log_mel: Float[Array, "*batch frames mel"]
) -> Int[Array, "*batch frames mel"]:
    """What the first layer sees."""
    half = 2 ** (detector.network.quant.activations - 1)
    mean, std = jnp.asarray(detector.mean), jnp.asarray(detector.std)
    scaled = normalized(log_mel, mean, std) * 2.0**detector.input
    return jnp.clip(jnp.round(scaled), -half, half - 1).astype(jnp.int32)


def to_steps(
    detector: Detector, codes: Int[Array, "batch frames mel"]
) -> tuple[Int[Array, "batch step event"], Int[Array, "batch step event"] | None]:
    """What the output layers say at each step, on the grid; those of the attention None without one."""
    zeros = jnp.zeros((len(codes), detector.network.hidden_size), jnp.int32)
    return _advance(detector, (zeros,) * (2 * detector.network.layers), codes)[1:]


def in_jax(detector: Detector) -> Runtime:
    """`detector` as a program of JAX, from the codes of NumPy's front end on.

    It is always of the steps of a second, of which those of fewer samples are the first.
    """
    network, features = detector.network, detector.features
    frames, hop = network.receptive_field, network.stride
    most = -(-features.sample_rate // (hop * features.hop_length)) + 1

    @jax.jit
    def compiled(cells, codes):
        after, outputs, _ = _advance(detector, [cell[None] for cell in cells], codes[None])
        return [cell[:, 0] for cell in after], outputs[0] * 2.0**-GRID

    def advance(cells: Cells, samples: np.ndarray) -> tuple[Cells, np.ndarray]:
        codes, logits = reference.input_codes(detector, front_end.log_mel(features, samples)), []
        for first in range(0, network.steps(len(codes)), most):
            piece = codes[first * hop :][: frames + (most - 1) * hop]
            padded = np.zeros((frames + (most - 1) * hop, features.n_mels), np.int32)
            padded[: len(piece)] = piece
            after, outputs = compiled(cells, padded)
            steps = network.steps(len(piece))
            cells = tuple(np.asarray(cell)[steps - 1] for cell in after)
            logits.append(np.asarray(outputs)[:steps])
        return cells, np.concatenate(logits)

    return Runtime(detector, in_numpy(detector).start, advance)


def _advance(
    detector: Detector, cells: Sequence[Int[Array, "batch unit"]], codes: Int[Array, "batch frames mel"]
) -> tuple[
    list[Int[Array, "step batch unit"]],
    Int[Array, "batch step event"],
    Int[Array, "batch step event"] | None,
]:
    """The cells, h and c of each layer in turn, after each step, and what `to_steps` gives.

    `cells` are those before the first.
    """
    bits = detector.network.quant.activations
    x = codes[..., None]
    for index, conv in enumerate(detector.front):
        x = convolve(_in_float(conv), x, detector.network.conv_stride(index), bits)
    x, after = jnp.moveaxis(x.reshape(*x.shape[:2], -1), 1, 0), []
    for index, layer in enumerate(map(_in_float, detector.lstm)):

        def body(cell, z_x, layer=layer):
            h, c, _ = step(layer, cell[0], cell[1], z_x, bits)
            return (h, c), (h, c)

        _, (x, c) = jax.lax.scan(body, tuple(cells[2 * index :][:2]), from_inputs(layer, x))
        after += [x, c]
    x = jnp.moveaxis(x, 0, 1)
    attention = None if detector.attention is None else linear(_in_float(detector.attention), x)
    return after, linear(_in_float(detector.output), x), attention


def _in_float(codes: Any) -> Any:
    """Arrays of JAX, weights in float32: products are then faster, and as exact for a detector."""
    arrays = jax.tree.map(jnp.asarray, codes)
    return arrays._replace(
        **{name: getattr(arrays, name).astype(jnp.float32) for name in codes._fields if name[0] == "w"}
    )
