"""The clock of frames and steps: which samples a step reads, and when that is."""

from typing import NamedTuple

from qkd_jax.config.features import FeatureConfig
from qkd_jax.config.networks import StepNetwork


class Clock(NamedTuple):
    """Step t is at `first` + t · `step` seconds: the centre of the samples that it reads."""

    first: float
    step: float


def step_samples(features: FeatureConfig, network: StepNetwork) -> tuple[int, int]:
    """Samples that a step of `network` reads, and samples from one step to the next."""
    window = (network.receptive_field - 1) * features.hop_length + features.win_length
    return window, network.stride * features.hop_length


def step_clock(features: FeatureConfig, network: StepNetwork) -> Clock:
    """When the steps of `network` are."""
    window, hop = step_samples(features, network)
    return Clock(window / 2 / features.sample_rate, hop / features.sample_rate)
