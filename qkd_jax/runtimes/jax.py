"""JAX: a detector as a pure function; it has no file format of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkd_jax.audio.log_mel_numpy import log_mel as log_mel_in_numpy
from qkd_jax.detector import reference
from qkd_jax.detector.codes import LOGIT_EXPONENT
from qkd_jax.detector.detector import Detector
from qkd_jax.detector.stream import LSTMState, Runtime, in_numpy
from qkd_jax.nn.integer_only import convolve, from_inputs, linear, normalized, step

_STEP = np.float32(2.0**-LOGIT_EXPONENT)  # not a Python float: that would give float64 with JAX_ENABLE_X64


def to_jax(detector: Detector) -> Callable[[Float[Array, "batch frames mel"]], Float[Array, "batch event"]]:
    """The pure function from log-mel energies of clips to their logits, to which `jit`, `vmap` etc. apply.

    Its codes equal those of `detector.reference`, on CPU, GPU and TPU.
    """

    def logits(log_mel):
        outputs, attention = to_steps(detector, input_codes(detector, log_mel))
        outputs = outputs * _STEP
        if attention is not None:
            return (jax.nn.softmax(attention * _STEP, axis=-2) * outputs).sum(axis=-2)
        return outputs[..., -1, :] if detector.network.pooling == "last" else outputs.mean(axis=-2)

    return logits


def input_codes(
    detector: Detector, log_mel: Float[Array, "*batch frames mel"]
) -> Int[Array, "*batch frames mel"]:
    """The input codes of log-mel energies, as `reference.input_codes`."""
    half = 2 ** (detector.network.quant.activations - 1)
    mean, std = jnp.asarray(detector.mean), jnp.asarray(detector.std)
    scaled = normalized(log_mel, mean, std) * 2.0**detector.input_exponent
    return jnp.clip(jnp.round(scaled), -half, half - 1).astype(jnp.int32)


def to_steps(
    detector: Detector, codes: Int[Array, "batch frames mel"]
) -> tuple[Int[Array, "batch step event"], Int[Array, "batch step event"] | None]:
    """The output layers' codes at each step: the logits' and the attention's, None without attention."""
    zeros = jnp.zeros((len(codes), detector.network.hidden_size), jnp.int32)
    return _advance(detector, (zeros,) * (2 * detector.network.layers), codes)[1:]


def open_stream(detector: Detector) -> Runtime:
    """`detector` on a stream, as a compiled program that takes the codes of NumPy's log-mel energies.

    The program always computes the steps of one second; fewer are padded, so that it is compiled once.
    """
    network, features = detector.network, detector.features
    frames, hop = network.receptive_field, network.stride
    most = -(-features.sample_rate // (hop * features.hop_length)) + 1

    @jax.jit
    def compiled(state, codes):
        after, outputs, _ = _advance(detector, [part[None] for part in state], codes[None])
        return [part[:, 0] for part in after], outputs[0] * _STEP

    def advance(state: LSTMState, samples: np.ndarray) -> tuple[LSTMState, np.ndarray]:
        codes, logits = reference.input_codes(detector, log_mel_in_numpy(features, samples)), []
        for first in range(0, network.steps(len(codes)), most):
            piece = codes[first * hop :][: frames + (most - 1) * hop]
            padded = np.zeros((frames + (most - 1) * hop, features.n_mels), np.int32)
            padded[: len(piece)] = piece
            after, outputs = compiled(state, padded)
            steps = network.steps(len(piece))
            state = tuple(np.asarray(part)[steps - 1] for part in after)
            logits.append(np.asarray(outputs)[:steps])
        return state, np.concatenate(logits)

    return Runtime(detector, in_numpy(detector).start, advance)


def _advance(
    detector: Detector, state: Sequence[Int[Array, "batch hidden"]], codes: Int[Array, "batch frames mel"]
) -> tuple[
    list[Int[Array, "step batch hidden"]],
    Int[Array, "batch step event"],
    Int[Array, "batch step event"] | None,
]:
    """The LSTM's state, h and c of each layer in turn, after each step, and the results of `to_steps`.

    `state` is the LSTM's before the first step.
    """
    bits = detector.network.quant.activations
    x = codes[..., None]
    for index, conv in enumerate(detector.front):
        x = convolve(_in_float(conv), x, detector.network.conv_stride(index), bits)
    x, after = jnp.moveaxis(x.reshape(*x.shape[:2], -1), 1, 0), []
    for index, layer in enumerate(map(_in_float, detector.lstm)):

        def body(carry, z_x, layer=layer):
            h, c, _ = step(layer, carry[0], carry[1], z_x, bits)
            return (h, c), (h, c)

        _, (x, c) = jax.lax.scan(body, tuple(state[2 * index :][:2]), from_inputs(layer, x))
        after += [x, c]
    x = jnp.moveaxis(x, 0, 1)
    attention = None if detector.attention is None else linear(_in_float(detector.attention), x)
    return after, linear(_in_float(detector.output), x), attention


def _in_float(codes: Any) -> Any:
    """`codes` as JAX arrays, weights in float32: their products are faster, and exact for every detector."""
    arrays = jax.tree.map(jnp.asarray, codes)
    return arrays._replace(
        **{name: getattr(arrays, name).astype(jnp.float32) for name in codes._fields if name[0] == "w"}
    )
