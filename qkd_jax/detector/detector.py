"""A detector: all that it takes to go from log-mel energies to logits, as integers."""

import dataclasses

import numpy as np

from qkd_jax.config import EventConfig, FeatureConfig, LSTMConfig
from qkd_jax.detector.codes import ConvCodes, LinearCodes, LSTMCodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detector:
    """A network in the `integer` scheme; its codes are NumPy arrays: w int8, multiplier float32, bias int32.

    The input is q = round((log-mel - mean) / std · 2^input), cut to the signed codes of
    `network.quant.activations` bits; `mean` and `std` are float32 [mels].  `event_config` says how readings
    become events.
    """

    features: FeatureConfig
    network: LSTMConfig
    events: tuple[str, ...]
    clip_seconds: float
    mean: np.ndarray
    std: np.ndarray
    input: int
    front: tuple[ConvCodes, ...]
    lstm: tuple[LSTMCodes, ...]
    output: LinearCodes
    attention: LinearCodes | None
    event_config: EventConfig = dataclasses.field(default_factory=EventConfig)
