"""Streams of samples in pieces, for the tests of detectors and of runtimes."""

import dataclasses

import numpy as np

from qkd_jax.config import EventConfig
from qkd_jax.detector.stream import push, start


def sound(samples, seed=0):
    """Noise that comes and goes."""
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 0.2, samples) * np.sin(np.arange(samples) / 900) ** 4).astype(np.float32)


def with_history(runtime, seconds):
    event_config = EventConfig(history_seconds=seconds)
    return runtime._replace(detector=dataclasses.replace(runtime.detector, event_config=event_config))


def steps_of(runtime, samples, cuts=()):
    """The logits of all steps of a stream that is cut at `cuts`."""
    state, logits = start(runtime), []
    for piece in np.split(samples, sorted(cuts)):
        state, new = push(runtime, state, piece)
        logits.append(new)
    return np.concatenate(logits)
