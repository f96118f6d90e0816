"""What the runtimes share."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qkd_jax.config import FeatureConfig
from qkd_jax.detector.stream import LSTMState
from qkd_jax.errors import InputError

Advance = Callable[[LSTMState, np.ndarray], tuple[LSTMState, np.ndarray]]


class Exported(NamedTuple):
    """The detector in an exported file.

    `clip_logits`, for a single thread, maps a waveform float32 [samples] to logits float32 [events].  The
    waveform lasts `clip_seconds` at the rate of `features`; full scale is 1.
    """

    events: tuple[str, ...]
    features: FeatureConfig
    clip_seconds: float
    clip_logits: Callable[[np.ndarray], np.ndarray]


def read_exported(path: Path, what: str) -> bytes:
    """The content of an exported file; raises InputError, which calls it `what`, if it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected {what}: {error.strerror or error}") from None


def step_by_step(step: Advance, window: int, hop: int) -> Advance:
    """The function that runs `step` over each window of its input, one every `hop`, and stacks the logits."""

    def advance(state: LSTMState, inputs: np.ndarray) -> tuple[LSTMState, np.ndarray]:
        logits = []
        for first in range(0, len(inputs) - window + 1, hop):
            state, each = step(state, inputs[first : first + window])
            logits.append(each)
        return state, np.array(logits)

    return advance
