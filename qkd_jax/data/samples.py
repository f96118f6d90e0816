"""The samples of a clip."""

import functools
from pathlib import Path

import numpy as np

from qkd_jax.audio.reading import read_audio
from qkd_jax.data.clips import Clip


def clip_samples(clip: Clip, rate: int, channel: int | None = None) -> np.ndarray:
    """The samples of a clip at `rate` Hz, float32 [samples]: of a part, its own; raises as `audio_blocks`."""
    start, end = clip.part or (0, None)
    return _recording(clip.path, rate, channel)[round(start * rate) : end and round(end * rate)]


@functools.lru_cache(1)  # the parts of a recording follow one another
def _recording(path: Path, rate: int, channel: int | None) -> np.ndarray:
    return read_audio(path, rate, channel=channel)
