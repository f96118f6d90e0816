"""The LSTM of the integer-only scheme: its Flax module, its calibration, and its conversion to a detector."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkd_jax.config import FeatureConfig, LSTMConfig, QuantConfig
from qkd_jax.detector.codes import CELL_BITS
from qkd_jax.detector.detector import Detector
from qkd_jax.models.common import ClassLogits, Logits, Normalize
from qkd_jax.models.lstm import LSTM
from qkd_jax.nn.integer_only import (
    conv_codes,
    integer_conv,
    integer_linear,
    linear_codes,
    lstm_codes,
    normalized,
)
from qkd_jax.nn.lstm import lstm_scan, lstm_step, lstm_zeros
from qkd_jax.quant.static import fake_quant_static, signed_range

_EXPONENTS = np.arange(-8, 16)
_CELL_EXPONENTS = (6, 13)
_EPSILON = 1e-5  # of Flax's batch-norm


class IntegerLSTM(nn.Module):
    """Log-mel energies to the logits that a device computes, with the parameters of an `LSTM`.

    Batch-norms use the running statistics in training too; they are folded into the convolution before them.
    The collection `exponents` (`calibrate`) holds the exponents of the activations' scales: `input` for the
    features, `convolutions` for each convolution's output, and `cell` for each layer's cell state.
    """

    config: LSTMConfig
    events: int
    classes: int = 0

    def setup(self) -> None:
        self.floats = LSTM(_in_float(self.config), self.events, self.classes)
        nn.share_scope(self, self.floats)
        self.variable("exponents", "input", jnp.zeros, (), jnp.int32)
        if self.config.convolutions:  # Orbax can't save empty arrays
            self.variable("exponents", "convolutions", jnp.zeros, len(self.config.convolutions), jnp.int32)
        self.variable("exponents", "cell", jnp.full, self.config.layers, _CELL_EXPONENTS[0], jnp.int32)

    def __call__(
        self, features: Float[Array, "batch time mel"], *, train: bool = False
    ) -> Float[Array, "batch event"]:
        return self.step_logits(features, train=train).clip

    def step_logits(self, features: Float[Array, "batch time mel"], *, train: bool = False) -> Logits:
        if self.is_initializing():
            return self.floats.step_logits(features)
        logits, outputs = _logits(self.config, self.variables, features)
        if not self.classes:
            return logits
        params = {"params": self.variables["params"]["classes"]}
        classes: Any = ClassLogits(self.classes, parent=None).apply(params, outputs)
        return logits._replace(classes=classes)


def _in_float(config: LSTMConfig) -> LSTMConfig:
    return dataclasses.replace(config, quant=QuantConfig())


def _logits(config: LSTMConfig, variables: Any, features: jax.Array) -> tuple[Logits, jax.Array]:
    """The logits, and the output of the last layer that they are computed from."""
    params, exponents, quant = variables["params"], variables["exponents"], config.quant
    norm = variables["norm"]["normalize"]
    x = normalized(features, norm["mean"], norm["std"])
    x = fake_quant_static(x, exponents["input"], *signed_range(quant.activations))
    if config.convolutions:
        x = x[..., None]
        for index, (w, gain, shift, before, after) in enumerate(_front(config, variables)):
            x = integer_conv(w, gain, shift, x, before, after, stride=config.conv_stride(index), quant=quant)
        x = x.reshape(*x.shape[:2], -1)
    outputs, _ = lstm_scan(_layers(config, variables), x, quant=quant)

    def linear(name: str, h: jax.Array) -> jax.Array:
        return integer_linear(params[name]["w"], params[name]["b"], h, quant)

    steps = linear("output", outputs)
    if config.pooling == "attention":
        clip = (jax.nn.softmax(linear("attention", outputs), axis=-2) * steps).sum(axis=-2)
    else:
        clip = linear("output", outputs[:, -1]) if config.pooling == "last" else steps.mean(axis=-2)
    return Logits(clip, steps), outputs


def _front(config: LSTMConfig, variables: Any) -> Iterable[tuple[Any, Any, Any, Any, Any]]:
    """For each convolution: w, gain, shift, and the exponents of its input and of its output."""
    exponents, before = variables["exponents"], variables["exponents"]["input"]
    for index in range(len(config.convolutions)):
        params, name = variables["params"]["front"], f"BatchNorm_{index}"
        norm, statistics = params[name], variables["batch_stats"]["front"][name]
        gain, moved = _folded(norm["scale"], statistics["mean"], statistics["var"])
        yield params[f"w{index}"], gain, norm["bias"] - moved, before, exponents["convolutions"][index]
        before = exponents["convolutions"][index]


def _folded(scale: jax.Array, mean: jax.Array, variance: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Barriers, so that XLA neither merges the multiplications nor replaces 1 / sqrt by rsqrt.
    gain = scale / jax.lax.optimization_barrier(jnp.sqrt(variance + _EPSILON))
    return gain, jax.lax.optimization_barrier(mean * gain)


def _layers(config: LSTMConfig, variables: Any) -> list[dict[str, jax.Array]]:
    """The parameters of the LSTM's layers, with their exponents."""
    exponents = variables["exponents"]
    x = exponents["convolutions"][-1] if config.convolutions else exponents["input"]
    layers = []
    for layer, cell in zip(variables["params"]["lstm"], exponents["cell"]):
        layers.append({**layer, "exponents": jnp.stack([x, cell])})
        x = jnp.int32(config.quant.activations - 1)
    return layers


def calibrate(config: LSTMConfig, variables: Any, batches: Iterable[Any]) -> dict[str, jax.Array]:
    """The collection `exponents`, measured on a float network of `variables` over `batches` of features.

    Each activation gets the exponent of least squared error.  Each layer's cell state gets the largest
    exponent at which codes can still hold twice the largest value observed.
    """
    model = LSTM(_in_float(config), variables["params"]["output"]["b"].shape[0])
    bits = config.quant.activations

    @jax.jit
    def measured(features):
        _, captured = model.apply(
            variables,
            features,
            capture_intermediates=lambda module, _: isinstance(module, Normalize | nn.BatchNorm),
            mutable=["intermediates"],
        )
        outputs = captured["intermediates"]
        x = outputs["normalize"]["__call__"][0]
        errors = {"input": _errors(x, *signed_range(bits))}
        if config.convolutions:
            front = [
                nn.relu(outputs["front"][f"BatchNorm_{index}"]["__call__"][0])
                for index in range(len(config.convolutions))
            ]
            errors["convolutions"] = jnp.stack([_errors(y, 0, 2**bits - 1) for y in front])
            x = front[-1].reshape(*front[-1].shape[:2], -1)

        def body(carry, x):
            state, largest = carry
            state = lstm_step(variables["params"]["lstm"], state, x)
            return (state, jnp.maximum(largest, jnp.stack([abs(layer.c).max() for layer in state]))), None

        state = lstm_zeros(variables["params"]["lstm"], x.shape[:1])
        (_, largest), _ = jax.lax.scan(
            body, (state, jnp.zeros(config.layers, jnp.float32)), jnp.moveaxis(x, 1, 0)
        )
        return errors, largest

    measures = [measured(features) for features in batches]
    errors = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *(errors for errors, _ in measures))
    largest = np.max([largest for _, largest in measures], axis=0)
    # A signed code is below 2^(CELL_BITS - 1) in size: the exponent is the largest e with
    # 2 · largest · 2^e <= 2^(CELL_BITS - 1), where the factor of 2 leaves headroom for other recordings.
    fitting = np.floor(np.log2(2 ** (CELL_BITS - 1) / (2 * np.maximum(largest, 1e-6))))
    exponents = {site: _EXPONENTS[error.argmin(axis=-1)] for site, error in errors.items()}
    exponents["cell"] = np.clip(fitting, *_CELL_EXPONENTS)
    return {site: jnp.asarray(value, jnp.int32) for site, value in exponents.items()}


def _errors(x: jax.Array, low: int, high: int) -> jax.Array:
    """The mean squared error of `x` quantized to codes from `low` to `high`, at each of _EXPONENTS."""
    return jnp.stack(
        [
            jnp.square(jnp.clip(jnp.round(x * 2.0**exponent), low, high) * 2.0**-exponent - x).mean()
            for exponent in map(float, _EXPONENTS)
        ]
    )


def to_detector(
    network: LSTMConfig,
    variables: Any,
    *,
    features: FeatureConfig,
    events: tuple[str, ...],
    clip_seconds: float,
) -> Detector:
    """The detector equal to `network`, in the integer-only scheme, with `variables`."""
    quant, norm = network.quant, variables["norm"]["normalize"]

    @jax.jit
    def codes(variables):
        return (
            tuple(conv_codes(*parts, bits=quant.weights) for parts in _front(network, variables)),
            tuple(lstm_codes(layer, quant) for layer in _layers(network, variables)),
            {
                name: linear_codes(variables["params"][name]["w"], variables["params"][name]["b"], quant)
                for name in ("output", "attention")
                if name in variables["params"]
            },
        )

    front, lstm, linear = jax.tree.map(np.asarray, codes(variables))
    return Detector(
        features=features,
        network=network,
        events=events,
        clip_seconds=clip_seconds,
        mean=np.asarray(norm["mean"]),
        std=np.asarray(norm["std"]),
        input_exponent=int(variables["exponents"]["input"]),
        front=tuple(_in_int8(conv) for conv in front),
        lstm=tuple(_in_int8(layer)._replace(cell_exponent=int(layer.cell_exponent)) for layer in lstm),
        output=_in_int8(linear["output"]),
        attention=_in_int8(linear["attention"]) if "attention" in linear else None,
    )


def _in_int8(codes: Any) -> Any:
    """`codes` with weights as int8."""
    return codes._replace(
        **{name: getattr(codes, name).astype(np.int8) for name in codes._fields if name.startswith("w")}
    )
