"""A detector: everything needed to turn log-mel energies into logits with integers."""

import dataclasses

import numpy as np

from qkd_jax.config import EventConfig, FeatureConfig, LSTMConfig
from qkd_jax.detector.codes import ConvCodes, LinearCodes, LSTMCodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detector:
    """A network of the integer-only scheme, its codes in NumPy: w int8, multiplier float32, bias int32.

    The input codes are q = round((log-mel - mean) / std · 2^input_exponent), clipped to the signed range of
    `network.quant.activations` bits; `mean` and `std` are float32 [mels].  `event_config` says how posteriors
    become events.
    """

    features: FeatureConfig
    network: LSTMConfig
    events: tuple[str, ...]
    clip_seconds: float
    mean: np.ndarray
    std: np.ndarray
    input_exponent: int
    front: tuple[ConvCodes, ...]
    lstm: tuple[LSTMCodes, ...]
    output: LinearCodes
    attention: LinearCodes | None
    event_config: EventConfig = dataclasses.field(default_factory=EventConfig)
