"""Detectors of random codes, and inputs for them."""

import dataclasses

import numpy as np

from qkd_jax.config import FeatureConfig, LSTMConfig, QuantConfig
from qkd_jax.detector.codes import GRID, MARGIN, ConvCodes, LinearCodes, LSTMCodes
from qkd_jax.detector.detector import Detector

PLAIN = LSTMConfig(hidden_size=24, quant=QuantConfig.integer(8))
"""The paper's form: one layer, the last state."""

FRONT = LSTMConfig(
    convolutions=(4, 6, 8), time_strides=2, hidden_size=16, pooling="attention", quant=QuantConfig.integer(4)
)
"""Convolutions in front, of stride 2, 2, 1 in time."""

DEEP = LSTMConfig(
    convolutions=(4,), layers=2, hidden_size=12, pooling="mean", quant=QuantConfig.integer(3, activations=5)
)
"""Two layers behind a convolution of stride 1, odd bits."""


def random_detector(network: LSTMConfig, *, seed: int = 0, mels: int = 32, events: int = 3) -> Detector:
    """A detector of random codes whose activations are neither all zero nor all saturated."""
    rng = np.random.default_rng(seed)
    quant = network.quant
    bits, largest = quant.activations, 2 ** (quant.weights - 1) - 1

    def codes(shape, largest):
        return rng.integers(-largest, largest, shape, endpoint=True).astype(np.int8)

    def multiplier(inputs, outputs, x_spread, wanted):
        """Such that random sums have about the spread `wanted`; one of them is 0, as of a dead column."""
        spread = np.sqrt(inputs) * (largest / 2 + 0.5) * x_spread
        found = wanted / spread * rng.uniform(0.5, 2, outputs)
        found[rng.integers(outputs)] = 0
        return found.astype(np.float32)

    def bias(outputs, spread):
        return np.rint(rng.normal(0, spread, outputs)).astype(np.int32)

    half, unsigned = 2 ** (bits - 1), 2**bits
    channels, bands, front, spread = 1, mels, [], half / 2
    for outputs in network.convolutions:
        wanted = unsigned / 3 * 2**MARGIN
        scale = multiplier(9 * channels, outputs, spread, wanted)
        front.append(ConvCodes(codes((3, 3, channels, outputs), largest), scale, bias(outputs, wanted / 3)))
        channels, bands, spread = outputs, -(-bands // 2), unsigned / 3
    inputs, units, lstm = channels * bands, network.hidden_size, []
    for index in range(network.layers):
        columns = 4 * units
        offsets = bias(columns, 1.0 * 2**GRID)
        offsets[:units] += 3 << GRID  # gates that remember
        lstm.append(
            LSTMCodes(
                codes((units, columns), largest),
                codes((inputs, columns), largest),
                multiplier(units, columns, half / 2, 1.5 * 2**GRID),
                multiplier(inputs, columns, spread, 2.0 * 2**GRID),
                offsets,
                (10, 7)[index % 2],
            )
        )
        inputs, spread = units, half / 2

    def linear():
        w = codes((units, events), 127)
        return LinearCodes(w, (rng.uniform(0.5, 2, events) / 64).astype(np.float32), bias(events, 500))

    return Detector(
        features=FeatureConfig(n_mels=mels),
        network=network,
        events=("dog", "baby_cry", "gunshot", *(f"event{index}" for index in range(3, events)))[:events],
        clip_seconds=2.0,
        mean=rng.normal(-6, 1, mels).astype(np.float32),
        std=rng.uniform(2, 4, mels).astype(np.float32),
        input=bits - 3,
        front=tuple(front),
        lstm=tuple(lstm),
        output=linear(),
        attention=linear() if network.pooling == "attention" else None,
    )


def random_codes(detector: Detector, frames: int, *, seed: int = 1) -> np.ndarray:
    """Codes of an input that wanders, all of them now and then at the ends of their range."""
    rng = np.random.default_rng(seed)
    half = 2 ** (detector.network.quant.activations - 1)
    steps = rng.normal(0, half / 3, (frames, detector.features.n_mels)) + half / 2 * np.sin(
        np.arange(frames)[:, None] / 7
    )
    return np.clip(np.rint(steps), -half, half - 1).astype(np.int32)


def with_bits(network: LSTMConfig, weights: int, activations: int = 8) -> LSTMConfig:
    return dataclasses.replace(network, quant=QuantConfig.integer(weights, activations))
