"""Detectors with random codes, and inputs for them."""

from dataclasses import replace

import numpy as np

from qkd_jax.config import FeatureConfig, LSTMConfig, QuantConfig
from qkd_jax.detector.codes import CONV_GUARD_BITS, LOGIT_EXPONENT, ConvCodes, LinearCodes, LSTMCodes
from qkd_jax.detector.detector import Detector

INTEGER = QuantConfig.integer
PLAIN = LSTMConfig(hidden_size=24, quant=INTEGER(8))
"""As in the paper: one layer, and the last state is read."""

STRIDES = {"convolutions": (4, 6, 8), "time_strides": 2}
FRONT = LSTMConfig(hidden_size=16, pooling="attention", quant=INTEGER(4), **STRIDES)
"""Convolutions in front, with strides 2, 2 and 1 in time."""

ODD = INTEGER(3, activations=5)
DEEP = LSTMConfig(convolutions=(4,), layers=2, hidden_size=12, pooling="mean", quant=ODD)
"""Two layers behind a convolution of stride 1, with odd numbers of bits."""

FORMS = {"plain": PLAIN, "front": FRONT, "deep": DEEP}


def random_detector(network: LSTMConfig, *, seed: int = 0, mels: int = 32, events: int = 3) -> Detector:
    """A detector with random codes, whose activations are neither all zero nor all saturated."""
    rng = np.random.default_rng(seed)
    quant = network.quant
    bits, largest = quant.activations, 2 ** (quant.weights - 1) - 1

    def codes(shape, largest):
        return rng.integers(-largest, largest, shape, endpoint=True).astype(np.int8)

    def multiplier(inputs, outputs, x_spread, wanted):
        """Multipliers that give random sums about the spread `wanted`; one is 0, as for a dead column."""
        spread = np.sqrt(inputs) * (largest / 2 + 0.5) * x_spread
        multipliers = wanted / spread * rng.uniform(0.5, 2, outputs)
        multipliers[rng.integers(outputs)] = 0
        return multipliers.astype(np.float32)

    def bias(outputs, spread):
        return np.rint(rng.normal(0, spread, outputs)).astype(np.int32)

    half, unsigned = 2 ** (bits - 1), 2**bits
    channels, bands, front, spread = 1, mels, [], half / 2
    for outputs in network.convolutions:
        wanted = unsigned / 3 * 2**CONV_GUARD_BITS
        scale = multiplier(9 * channels, outputs, spread, wanted)
        front.append(ConvCodes(codes((3, 3, channels, outputs), largest), scale, bias(outputs, wanted / 3)))
        channels, bands, spread = outputs, -(-bands // 2), unsigned / 3
    inputs, hidden, lstm = channels * bands, network.hidden_size, []
    for index in range(network.layers):
        columns = 4 * hidden
        offsets = bias(columns, 1.0 * 2**LOGIT_EXPONENT)
        offsets[:hidden] += 3 << LOGIT_EXPONENT  # forget gates near 1
        weights = codes((hidden, columns), largest), codes((inputs, columns), largest)
        of_h = multiplier(hidden, columns, half / 2, 1.5 * 2**LOGIT_EXPONENT)
        of_x = multiplier(inputs, columns, spread, 2.0 * 2**LOGIT_EXPONENT)
        lstm.append(LSTMCodes(*weights, of_h, of_x, offsets, (10, 7)[index % 2]))
        inputs, spread = hidden, half / 2

    def linear():
        w = codes((hidden, events), 127)
        return LinearCodes(w, (rng.uniform(0.5, 2, events) / 64).astype(np.float32), bias(events, 500))

    return Detector(
        features=FeatureConfig(n_mels=mels),
        network=network,
        events=("dog", "baby_cry", "gunshot", *(f"event{index}" for index in range(3, events)))[:events],
        clip_seconds=2.0,
        mean=rng.normal(-6, 1, mels).astype(np.float32),
        std=rng.uniform(2, 4, mels).astype(np.float32),
        input_exponent=bits - 3,
        front=tuple(front),
        lstm=tuple(lstm),
        output=linear(),
        attention=linear() if network.pooling == "attention" else None,
    )


def random_codes(detector: Detector, frames: int, *, seed: int = 1) -> np.ndarray:
    """Input codes that wander, and at times all lie at an end of their range."""
    rng = np.random.default_rng(seed)
    half = 2 ** (detector.network.quant.activations - 1)
    wave = half / 2 * np.sin(np.arange(frames)[:, None] / 7)
    steps = rng.normal(0, half / 3, (frames, detector.features.n_mels)) + wave
    return np.clip(np.rint(steps), -half, half - 1).astype(np.int32)


def with_bits(network: LSTMConfig, weights: int, activations: int = 8) -> LSTMConfig:
    return replace(network, quant=QuantConfig.integer(weights, activations))
