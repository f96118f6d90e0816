"""Recordings of noise, and features that name their clip and frame."""

import tracemalloc
from pathlib import Path

import numpy as np
import soundfile

from qkd_jax.data.clips import Clip


def clip(name, labels=(), root=Path(), **fields):
    """A clip, by default in a group by itself, whose recording need not exist."""
    return Clip(name=name, root=root, labels=frozenset(labels), **{"group": name} | fields)


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, samples).astype(np.float32)


def record(folder, name, samples, rate=16_000, **fields):
    """Write samples, as floats so that nothing is rounded; returns the clip."""
    soundfile.write(folder / name, samples, rate, subtype="FLOAT")
    return clip(name, root=folder, **fields)


def numbered(lengths):
    """Features of clips of `lengths` frames: each value is 100 · clip + frame."""
    return [
        np.repeat(100 * clip + np.arange(length, dtype=np.float32), 2).reshape(length, 2)
        for clip, length in enumerate(lengths)
    ]


def traced(make):
    """What `make` returns, the memory that is held then, and the most in between, in bytes."""
    tracemalloc.start()
    made = make()
    sizes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return made, *sizes
