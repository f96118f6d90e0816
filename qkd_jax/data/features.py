"""From clips to features in memory, ready for batches."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from qkd_jax.audio.io import read_audio
from qkd_jax.audio.logmel import log_mel
from qkd_jax.config import FeatureConfig, InputError
from qkd_jax.data.clips import Clip, targets
from qkd_jax.progress import track


@dataclass(frozen=True)
class Dataset:
    """Clips of one split: `features` float32 [frames, mels] each, `targets` float32 [clips, events]."""

    names: list[str]
    features: list[np.ndarray]
    targets: np.ndarray
    events: tuple[str, ...]


def load_features(
    clips: Sequence[Clip],
    events: Sequence[str],
    config: FeatureConfig,
    frames: int,
) -> Dataset:
    """Read `clips` and compute their log-mel energies on all cores.

    A clip of fewer than `frames` frames is tiled until it has them, never zero-padded, so that
    length can't tell the class.
    """
    one = functools.partial(clip_features, config=config, frames=frames)
    with ThreadPoolExecutor() as pool:
        features = list(track(pool.map(one, clips), len(clips), f"{clips[0].split} features"))
    return Dataset([clip.name for clip in clips], features, targets(clips, events), tuple(events))


def clip_features(clip: Clip, config: FeatureConfig, frames: int) -> np.ndarray:
    """Log-mel energies of one recording, float32 [at least `frames`, n_mels]."""
    samples = read_audio(clip.path, config.sample_rate)
    needed = config.win_length + (frames - 1) * config.hop_length
    if len(samples) < needed:
        samples = np.tile(samples, -(-needed // len(samples)))[:needed]
    # Whole seconds, so that recordings of many lengths share few compiled shapes.
    padded = np.pad(samples, (0, -len(samples) % config.sample_rate))
    features = np.asarray(log_mel(jnp.asarray(padded), config))[: config.frames(len(samples))]
    if not np.isfinite(features).all():
        raise InputError(f"{clip.path}: expected finite samples, found NaN or infinity")
    return features


def mean_and_std(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each band over all frames (global CMVN), float32 [mels]."""
    count = sum(len(item) for item in features)
    mean = sum(item.sum(axis=0, dtype=np.float64) for item in features) / count
    variance = sum(((item - mean) ** 2).sum(axis=0) for item in features) / count
    # A band that never changes says nothing; it must not become infinite.
    std = np.sqrt(np.maximum(variance, 1e-10))
    return mean.astype(np.float32), std.astype(np.float32)
